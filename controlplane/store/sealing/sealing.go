// Package sealing encrypts what a store must not hold in the clear: job tokens and payloads.
//
// Each job has a data key of its own, derived from the master key and a random salt that is stored with the job
// (HKDF-SHA256). Derived, not wrapped: there is no limit to how many jobs one master key serves, and without the salt
// the data is lost, just as with a wrapped key. Data is sealed with AES-256-GCM under the data key and bound to what it
// is and whose it is, so that values that change places in the database do not open.
package sealing

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/switchyard-ci/switchyard/internal/durable"
)

const (
	keySize  = 32
	saltSize = 32
)

// Overhead is how many bytes longer a sealed value is than the value.
const Overhead = 12 + 16

// ErrOpen says that a value does not open: another key, another place, or damage.
var ErrOpen = errors.New("the value does not open with this master key")

// Key is the master key. It may be used concurrently.
type Key struct {
	secret []byte
}

// LoadKey reads the master key from a file and, if there is none, makes one (mode 0600, durable before it returns).
// The caller owns the folder: two processes must not make the same key at once.
func LoadKey(path string) (*Key, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		secret := make([]byte, keySize)
		_, _ = rand.Read(secret) // never fails (crypto/rand)
		if err := durable.WriteFile(path, secret, 0o600); err != nil {
			return nil, fmt.Errorf("make the master key: %w", err)
		}
		return &Key{secret: secret}, nil
	case err != nil:
		return nil, fmt.Errorf("read the master key: %w", err)
	case len(data) != keySize:
		return nil, fmt.Errorf("the master key %s is damaged: it has %d bytes instead of %d; restore it from a backup", path, len(data), keySize)
	}
	return &Key{secret: data}, nil
}

// NewKey makes a master key from 32 secret bytes, which it copies.
func NewKey(secret [keySize]byte) *Key {
	return &Key{secret: secret[:]}
}

// NewBox makes a data key and the salt by which OpenBox finds it again.
func (k *Key) NewBox() (box Box, salt []byte) {
	salt = make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails (crypto/rand)
	box, err := k.OpenBox(salt)
	if err != nil {
		panic(fmt.Sprintf("sealing: a fresh salt is refused: %v", err))
	}
	return box, salt
}

// OpenBox derives the data key of a salt that NewBox gave. A wrong salt is noticed by Box.Open.
func (k *Key) OpenBox(salt []byte) (Box, error) {
	if len(salt) != saltSize {
		return Box{}, fmt.Errorf("%w: its salt has %d bytes instead of %d", ErrOpen, len(salt), saltSize)
	}
	dataKey, err := hkdf.Key(sha256.New, k.secret, salt, "switchyard data key", keySize)
	if err != nil {
		return Box{}, fmt.Errorf("derive the data key: %w", err)
	}
	block, err := aes.NewCipher(dataKey)
	if err != nil {
		return Box{}, fmt.Errorf("data key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return Box{}, fmt.Errorf("data key: %w", err)
	}
	return Box{aead: aead}, nil
}

// Box seals and opens under one data key. It may be used concurrently.
type Box struct {
	aead cipher.AEAD
}

// Seal encrypts a value. what says what it is and whose (for example "token" and the job's URL and id): Open needs the
// same.
func (b Box) Seal(value []byte, what string) []byte {
	return b.aead.Seal(make([]byte, 0, len(value)+Overhead), nil, value, []byte(what))
}

// Open decrypts what Seal made. ErrOpen if it is not that.
func (b Box) Open(sealed []byte, what string) ([]byte, error) {
	value, err := b.aead.Open(nil, nil, sealed, []byte(what))
	if err != nil {
		return nil, ErrOpen
	}
	return value, nil
}
