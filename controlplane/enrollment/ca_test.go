package enrollment_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func openCA(t *testing.T, folder string) *enrollment.CA {
	t.Helper()
	ca, err := enrollment.OpenCA(folder, nil)
	require.NoError(t, err)
	return ca
}

func TestTheCAStaysTheSame(t *testing.T) {
	folder := t.TempDir()
	first := openCA(t, folder)
	require.Equal(t, first.Certificate().Raw, openCA(t, folder).Certificate().Raw)
	require.WithinDuration(t, time.Now().Add(enrollment.CALife), first.Certificate().NotAfter, time.Minute)

	for name, mode := range map[string]os.FileMode{"ca.key": 0o600, "ca.crt": 0o644} {
		info, err := os.Stat(filepath.Join(folder, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode())
	}
	files, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, files, 2, "nothing half-made is left")
}

func TestTheCAGetsANewCertificateInItsLastYear(t *testing.T) {
	folder, clock := t.TempDir(), newClock()
	first := openCA(t, folder).Certificate()
	clock.advance(enrollment.CALife - 300*24*time.Hour)
	ca, err := enrollment.OpenCA(folder, clock.now)
	require.NoError(t, err)
	require.True(t, ca.Certificate().NotAfter.After(first.NotAfter))
	require.Equal(t, jointoken.CADigest(first), jointoken.CADigest(ca.Certificate()))
	require.Equal(t, ca.Certificate().Raw, openCA(t, folder).Certificate().Raw)
}

// The certificate may be lost, or never written in a crash; what counts is the key.
func TestANewCACertificateForTheSameKeyChangesNothingForAgents(t *testing.T) {
	folder, clock := t.TempDir(), newClock()
	h := newHost(t)
	var first *x509.Certificate
	var token jointoken.Token
	t.Run("before", func(t *testing.T) {
		f := startFleet(t, folder, clock)
		first, token = f.ca.Certificate(), f.token(t, 2)
		_, err := h.enroll(t, f, token, "build-1")
		require.NoError(t, err)
	})
	require.NoError(t, os.Remove(filepath.Join(folder, "ca.crt")))
	f := startFleet(t, folder, clock)
	require.NotEqual(t, first.Raw, f.ca.Certificate().Raw)

	_, err := ask(t, f.dial(t, fleettls.Client(first, func() (*tls.Certificate, error) { return h.certificate, nil })))
	require.NoError(t, err)
	_, err = newHost(t).enroll(t, f, token, "build-2")
	require.NoError(t, err)
}

func TestADamagedCA(t *testing.T) {
	for _, c := range []struct {
		damage func(t *testing.T, folder string)
		text   string
	}{
		{
			func(t *testing.T, folder string) { require.NoError(t, os.Remove(filepath.Join(folder, "ca.key"))) },
			"ca.key is missing beside ca.crt: restore it from a backup, or move ca.crt away to begin a new fleet",
		},
		{
			func(t *testing.T, folder string) {
				require.NoError(t, os.WriteFile(filepath.Join(folder, "ca.key"), []byte("junk"), 0o600))
			},
			`ca.key is damaged: it must hold one PEM block "PRIVATE KEY" and nothing else; restore it from a backup`,
		},
		{
			func(t *testing.T, folder string) {
				require.NoError(t, os.Truncate(filepath.Join(folder, "ca.crt"), 100))
			},
			"ca.crt is damaged",
		},
		{
			func(t *testing.T, folder string) {
				other := t.TempDir()
				openCA(t, other)
				require.NoError(t, os.Rename(filepath.Join(other, "ca.key"), filepath.Join(folder, "ca.key")))
			},
			"restore both from one backup",
		},
	} {
		folder := t.TempDir()
		openCA(t, folder)
		c.damage(t, folder)
		_, err := enrollment.OpenCA(folder, nil)
		require.ErrorContains(t, err, c.text)
	}
}
