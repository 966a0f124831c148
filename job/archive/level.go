//go:build unix

package archive

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// known returns l, or Default with a warning as gitlab-runner does.
func (l Level) known(warn func(string)) Level {
	switch l {
	case Fastest, Fast, Default, Slow, Slowest:
		return l
	case "":
		return Default
	}
	warn(fmt.Sprintf("compression level %q is invalid, falling back to default", string(l)))
	return Default
}

// flate is the level of deflate, as gitlab-runner chooses it for zip. 0 stores.
func (l Level) flate() int {
	switch l {
	case Fastest:
		return 0
	case Fast:
		return 1
	case Slow:
		return 7
	case Slowest:
		return 9
	default:
		return 5
	}
}

// zstd is the level of zstd, and with how many workers at most: each has tables of 1 to 5 MiB, with the highest level 36.
func (l Level) zstd() (zstd.EncoderLevel, int) {
	switch l {
	case Fastest, Fast:
		return zstd.SpeedFastest, 4
	case Slow:
		return zstd.SpeedBetterCompression, 2
	case Slowest:
		return zstd.SpeedBestCompression, 1
	default:
		return zstd.SpeedDefault, 4
	}
}

// encoder compresses up to n blocks at once with EncodeAll. Blocks are of up to blockSize bytes.
func (l Level) encoder(n, blockSize int, checksum bool) (*zstd.Encoder, error) {
	level, _ := l.zstd()
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(n), zstd.WithWindowSize(blockSize),
		zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(checksum), zstd.WithAllLitEntropyCompression(true))
}
