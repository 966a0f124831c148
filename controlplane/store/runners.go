package store

import (
	"crypto/rand"
	"math/big"
)

// NewSystemID makes a system_id as Runners.SystemID says. GitLab takes two processes with one id for one.
func NewSystemID() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	id := []byte("r_000000000000")
	for i := 2; i < len(id); i++ {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(digits))))
		if err != nil {
			panic("store: crypto/rand never fails: " + err.Error())
		}
		id[i] = digits[n.Int64()]
	}
	return string(id)
}
