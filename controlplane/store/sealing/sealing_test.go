package sealing_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
)

func TestWhatWasSealedOpens(t *testing.T) {
	key := sealing.NewKey([32]byte{1})
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SliceOfN(rapid.Byte(), 0, 4096).Draw(t, "value")
		what := rapid.String().Draw(t, "what")

		box, salt := key.NewBox()
		sealed := box.Seal(value, what)
		require.Len(t, sealed, len(value)+sealing.Overhead)

		again, err := key.OpenBox(salt)
		require.NoError(t, err)
		opened, err := again.Open(sealed, what)
		require.NoError(t, err)
		require.True(t, bytes.Equal(value, opened))

		_, err = again.Open(sealed, what+"x")
		require.ErrorIs(t, err, sealing.ErrOpen)
		sealed[rapid.IntRange(0, len(sealed)-1).Draw(t, "damaged byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		_, err = again.Open(sealed, what)
		require.ErrorIs(t, err, sealing.ErrOpen)
	})
}

func TestNothingElseOpensIt(t *testing.T) {
	box, salt := sealing.NewKey([32]byte{1}).NewBox()
	sealed := box.Seal([]byte("secret"), "token")
	require.NotContains(t, string(sealed), "secret")

	other, err := sealing.NewKey([32]byte{2}).OpenBox(salt)
	require.NoError(t, err)
	_, err = other.Open(sealed, "token")
	require.ErrorIs(t, err, sealing.ErrOpen)

	next, _ := sealing.NewKey([32]byte{1}).NewBox()
	_, err = next.Open(sealed, "token")
	require.ErrorIs(t, err, sealing.ErrOpen)

	_, err = sealing.NewKey([32]byte{1}).OpenBox(salt[:31])
	require.ErrorIs(t, err, sealing.ErrOpen)
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	made, err := sealing.LoadKey(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	box, salt := made.NewBox()
	sealed := box.Seal([]byte("secret"), "token")
	loaded, err := sealing.LoadKey(path)
	require.NoError(t, err)
	again, err := loaded.OpenBox(salt)
	require.NoError(t, err)
	opened, err := again.Open(sealed, "token")
	require.NoError(t, err)
	require.Equal(t, "secret", string(opened))

	require.NoError(t, os.WriteFile(path, []byte("short"), 0o600))
	_, err = sealing.LoadKey(path)
	require.ErrorContains(t, err, "has 5 bytes instead of 32; restore it from a backup")

	_, err = sealing.LoadKey(filepath.Join(path, "below-a-file"))
	require.Error(t, err)
}

func BenchmarkSealPayload(b *testing.B) {
	key := sealing.NewKey([32]byte{1})
	payload := make([]byte, 20<<10)
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		box, _ := key.NewBox()
		box.Seal(payload, "payload")
		box.Seal(payload[:64], "token")
	}
}
