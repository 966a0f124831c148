//go:build unix

package archive

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"time"
)

// frameSize is how much of a tar one worker compresses at a time, to a zstd frame of its own.
const frameSize = 1 << 20

// frame is a part of the tar on its way through the workers.
type frame struct{ plain, packed []byte }

// tar writes a tar in zstd frames: any zstd reads them one after another.
func (p *packer) tar(ctx context.Context, w io.Writer, level Level, names []string) error {
	_, most := level.zstd()
	n := min(workers(), most, 3) // more would wait for the one goroutine that reads
	encoder, err := level.encoder(n, frameSize, true)
	if err != nil {
		return err
	}
	defer func() { _ = encoder.Close() }() // it wrote to nothing
	drop := func(f *frame) {
		p.buffers.put(f.plain)
		p.buffers.put(f.packed)
	}
	return ordered[*frame]{
		workers: n, ahead: 2, drop: drop,
		give: func(ctx context.Context, put func(*frame) error) error {
			frames := &framer{buffers: &p.buffers, put: put}
			defer frames.drop()
			if err := p.writeTar(ctx, frames, names); err != nil {
				return err
			}
			return frames.flush()
		},
		work: func(_ context.Context, f *frame) error {
			f.packed = encoder.EncodeAll(f.plain, p.buffers.get(len(f.plain))[:0])
			return nil
		},
		take: func(f *frame) error {
			defer drop(f)
			_, err := w.Write(f.packed)
			return err
		},
	}.run(ctx)
}

// framer cuts what is written into frames.
type framer struct {
	buffers *buffers
	put     func(*frame) error
	plain   []byte
}

func (f *framer) Write(b []byte) (int, error) {
	written := len(b)
	for len(b) > 0 {
		if f.plain == nil {
			f.plain = f.buffers.get(frameSize)[:0]
		}
		n := min(len(b), frameSize-len(f.plain))
		f.plain = append(f.plain, b[:n]...)
		b = b[n:]
		if len(f.plain) == frameSize {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

func (f *framer) flush() error {
	if len(f.plain) == 0 {
		return nil
	}
	plain := f.plain
	f.plain = nil
	return f.put(&frame{plain: plain})
}

func (f *framer) drop() { f.buffers.put(f.plain) }

func (p *packer) writeTar(ctx context.Context, w io.Writer, names []string) error {
	t := tar.NewWriter(w)
	buffer := make([]byte, 128<<10)
	err := p.walk(ctx, names, func(e *entry, in *folder, base string) error {
		if err := p.writeTarEntry(ctx, t, e, in, base, buffer); err != nil {
			return fmt.Errorf("%q: %w", e.name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func (p *packer) writeTarEntry(ctx context.Context, t *tar.Writer, e *entry, in *folder, base string, buffer []byte) error {
	h := &tar.Header{Name: e.name, Mode: int64(e.info.Mode().Perm()), Linkname: e.link}
	h.Uid, h.Gid = e.owner()
	h.ModTime = time.Unix(e.info.ModTime().Unix(), 0) // without this it would be rounded, into the future
	switch {
	case e.info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, e.name+"/"
		return t.WriteHeader(h)
	case e.link != "":
		h.Typeflag = tar.TypeSymlink
		return t.WriteHeader(h)
	}
	file, info, err := openFile(in, base)
	if err != nil && p.vanished(e.name, err) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only read
	h.Typeflag, h.Size = tar.TypeReg, info.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(onlyWriter{t}, reader{ctx, io.LimitReader(file, h.Size)}, buffer)
	if err == nil && n < h.Size {
		p.warn(fmt.Sprintf("%s: it shrank while it was packed; zeros fill it up", e.name))
		_, err = io.CopyN(t, zeros{}, h.Size-n)
	}
	p.packed.Files++
	p.packed.Bytes += n
	return err
}

// onlyWriter hides the methods that would not use the buffer.
type onlyWriter struct{ io.Writer }

// zeros is a reader without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
