package docker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// identityFile is in Options.Data.
const identityFile = "docker.key"

const keyLength = 32

// identity is this agent's towards engines: a key that only it has. It tells its containers from others' and makes the
// tokens of jobs, which must be the same after a restart.
type identity struct{ key []byte }

// id is public.
func (i *identity) id() string { return i.derive("agent")[:16] }

// token opens the server of one job's scripts.
func (i *identity) token(name string) string { return i.derive("token of " + name) }

func (i *identity) derive(what string) string {
	h := hmac.New(sha256.New, i.key)
	h.Write([]byte(what))
	return hex.EncodeToString(h.Sum(nil))
}

func (e *Executor) identity() (*identity, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.self != nil {
		return e.self, nil
	}
	self, err := loadIdentity(e.options.Data)
	if err != nil {
		return nil, fmt.Errorf("the agent's key for engines: %w", err)
	}
	e.self = self
	return self, nil
}

func loadIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return &identity{key}, err
	}
	fresh := make([]byte, keyLength)
	_, _ = rand.Read(fresh) // never fails
	temporary, err := os.CreateTemp(dir, "."+identityFile+".*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.WriteString(hex.EncodeToString(fresh) + "\n")
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err != nil {
		return nil, err
	}
	// Whoever is first has made it.
	if err := os.Link(temporary.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if key, err = readKey(path); err != nil {
		return nil, err
	}
	return &identity{key}, nil
}

func readKey(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != keyLength {
		return nil, fmt.Errorf("%s is damaged: remove it when no job of this agent runs", path)
	}
	return key, nil
}
