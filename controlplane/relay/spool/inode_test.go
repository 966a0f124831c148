package spool

import (
	"os"
	"syscall"

	"github.com/stretchr/testify/require"
)

func inode(t require.TestingT, path string) uint64 {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}
