//go:build !linux

package spool

import "os"

func reserve(*os.File, int64) {}
