package spool

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"strings"
)

// A checkpoint says what the first bytes of a job's file are. It proves itself: by a checksum of its own, and by the
// CRC-32 of the bytes that it speaks of. So checkpoints need no order and no whole file to be believed, and one that is
// torn or out of date does no harm.
type checkpoint struct {
	job, epoch int64
	length     int64
	crc        uint32 // CRC-32 (IEEE) of [0, length)
	acked      int64  // so much was acknowledged as synced before the checkpoint was written
	boot       boot   // the kernel's run in which it was written
}

// recordSize is a checkpoint's size on disk. It divides the sector of a disk, the unit in which a loss of power tears.
const recordSize = 64

var (
	recordMagic = [4]byte{'S', 'W', 'c', '1'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// append adds the record:
//
//	0 magic, 4 crc, 8 job, 16 epoch, 24 length, 32 acked, 40 boot, 56 zeros, 60 CRC-32C of the bytes before
//
// in little-endian order. The checksum is of another polynomial than that of the traces, which are anybody's bytes.
func (c checkpoint) append(b []byte) []byte {
	begin := len(b)
	b = append(b, recordMagic[:]...)
	b = binary.LittleEndian.AppendUint32(b, c.crc)
	for _, n := range []int64{c.job, c.epoch, c.length, c.acked} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n)) //nolint:gosec // parsed back in the same way
	}
	b = append(b, c.boot[:]...)
	b = append(b, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[begin:], castagnoli))
}

// parseCheckpoint reads a record of recordSize bytes; ok is false if it is not whole.
func parseCheckpoint(b []byte) (c checkpoint, ok bool) {
	end := recordSize - 4
	if !bytes.Equal(b[:4], recordMagic[:]) || binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return c, false
	}
	c.crc = binary.LittleEndian.Uint32(b[4:])
	for i, to := range []*int64{&c.job, &c.epoch, &c.length, &c.acked} {
		*to = int64(binary.LittleEndian.Uint64(b[8+8*i:])) //nolint:gosec // checked below
	}
	copy(c.boot[:], b[40:])
	return c, c.job > 0 && c.epoch > 0 && c.length >= 0 && c.acked >= 0 && [4]byte(b[56:]) == [4]byte{}
}

// parseCheckpoints returns the whole records of a log in their order and the number of those that are not.
func parseCheckpoints(b []byte) (list []checkpoint, broken int) {
	for ; len(b) >= recordSize; b = b[recordSize:] {
		if c, ok := parseCheckpoint(b[:recordSize]); ok {
			list = append(list, c)
		} else {
			broken++
		}
	}
	if len(b) > 0 {
		broken++
	}
	return list, broken
}

// boot names a run of the kernel; zero where it is not known.
type boot [16]byte

func currentBoot() (b boot) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return boot{}
	}
	id, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(id) != len(b) {
		return boot{}
	}
	return boot(id)
}
