// Package jointoken is the form of the token with which an agent joins a fleet:
//
//	SWY1-<64 hex digits: CA digest>-<32 base32 digits: secret>
//
// The first half is public. It pins the fleet's CA, so that the agent knows whom it talks to before the second half
// leaves the host. The control plane stores only [Token.Digest].
package jointoken

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// Version is the first part of every token of this format.
const Version = "SWY1"

const secretSize = 20

// ErrMalformed is in the chain of every error of Parse. No such error contains any part of the token.
var ErrMalformed = errors.New("malformed join token")

var secretEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Token is a join token. Its zero value is none. It is comparable, but compare secrets by Digest.
type Token struct {
	// CA is CADigest of the fleet's CA.
	CA [sha256.Size]byte

	secret [secretSize]byte
}

// New makes a token with a fresh secret for the fleet of that CA.
func New(ca *x509.Certificate) Token {
	t := Token{CA: CADigest(ca)}
	_, _ = rand.Read(t.secret[:]) // never fails (crypto/rand)
	return t
}

// CADigest is the digest by which a token names a CA: SHA-256 of its public key (SubjectPublicKeyInfo, DER), so that a
// CA certificate that is issued again for the same key keeps printed tokens valid.
func CADigest(ca *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(ca.RawSubjectPublicKeyInfo)
}

// Parse reads a token. Space around it is ignored, so that a file with a final newline is one.
func Parse(s string) (Token, error) {
	version, rest, ok := strings.Cut(strings.TrimSpace(s), "-")
	digest, secret, ok2 := strings.Cut(rest, "-")
	switch {
	case !ok || !ok2:
		return Token{}, fmt.Errorf("%w: it must have three parts, %s-<CA digest>-<secret>", ErrMalformed, Version)
	case version != Version:
		return Token{}, fmt.Errorf("%w: it must begin with %q (a newer control plane may need a newer agent)", ErrMalformed, Version+"-")
	}
	var t Token
	if n, err := hex.Decode(t.CA[:], trimTo(digest, hex.EncodedLen(len(t.CA)))); err != nil || n != len(t.CA) {
		return Token{}, fmt.Errorf("%w: the second part must be %d hexadecimal digits", ErrMalformed, hex.EncodedLen(len(t.CA)))
	}
	if n, err := secretEncoding.Decode(t.secret[:], trimTo(secret, secretEncoding.EncodedLen(secretSize))); err != nil || n != secretSize {
		return Token{}, fmt.Errorf("%w: the third part must be %d characters of a-z and 2-7", ErrMalformed, secretEncoding.EncodedLen(secretSize))
	}
	return t, nil
}

// trimTo returns s if it has exactly n bytes and nothing otherwise: the decoders must not write past their arrays.
func trimTo(s string, n int) []byte {
	if len(s) != n {
		return nil
	}
	return []byte(s)
}

// String is the whole token, secret included: print it only to the person who asked for it.
func (t Token) String() string {
	return Version + "-" + hex.EncodeToString(t.CA[:]) + "-" + secretEncoding.EncodeToString(t.secret[:])
}

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value {
	return slog.StringValue(Version + "-" + hex.EncodeToString(t.CA[:4]) + "…")
}

// Digest identifies the token without giving its secret away: what a store keeps and looks up by.
func (t Token) Digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte("switchyard join token\x00"))
	h.Write(t.secret[:])
	return [sha256.Size]byte(h.Sum(nil))
}
