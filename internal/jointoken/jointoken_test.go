package jointoken_test

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func TestTokenSurvivesTheWayOverAFile(t *testing.T) {
	token := jointoken.New(&x509.Certificate{RawSubjectPublicKeyInfo: []byte("key")})
	require.Len(t, token.String(), 4+1+64+1+32)

	again, err := jointoken.Parse("  " + token.String() + "\r\n")
	require.NoError(t, err)
	require.Equal(t, token, again)
	require.Equal(t, token.Digest(), again.Digest())
	require.NotEqual(t, token.Digest(), jointoken.New(&x509.Certificate{RawSubjectPublicKeyInfo: []byte("key")}).Digest())
}

func TestParseRefuses(t *testing.T) {
	good := jointoken.New(&x509.Certificate{}).String()
	for name, tc := range map[string]struct{ in, want string }{
		"empty":            {"", "three parts"},
		"two parts":        {"SWY1-abc", "three parts"},
		"another version":  {"SWY2" + good[4:], `begin with "SWY1-"`},
		"short digest":     {"SWY1-" + good[7:], "64 hexadecimal"},
		"digest not hex":   {"SWY1-" + strings.Repeat("z", 64) + good[69:], "64 hexadecimal"},
		"secret cut":       {good[:len(good)-1], "32 characters"},
		"secret too long":  {good + "a", "32 characters"},
		"secret upper":     {good[:70] + strings.Repeat("A", 32), "32 characters"},
		"very long secret": {good + strings.Repeat("a", 1<<16), "32 characters"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := jointoken.Parse(tc.in)
			require.ErrorIs(t, err, jointoken.ErrMalformed)
			require.ErrorContains(t, err, tc.want)
			require.NotContains(t, err.Error(), good[70:])
		})
	}
}

func TestLogsDoNotShowTheSecret(t *testing.T) {
	token := jointoken.New(&x509.Certificate{})
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("enrol", "token", token)
	require.Contains(t, out.String(), "SWY1-")
	require.NotContains(t, out.String(), token.String()[70:])
}

func FuzzParse(f *testing.F) {
	f.Add(jointoken.New(&x509.Certificate{}).String())
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := jointoken.Parse(s); err == nil {
			require.Equal(t, strings.TrimSpace(s)[70:], token.String()[70:])
		}
	})
}
