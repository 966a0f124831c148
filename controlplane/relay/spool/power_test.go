package spool

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// disk is what a loss of power would leave for certain of the spool's files: their content when they were last synced.
type disk struct {
	dir   string
	safe  map[string][]byte
	inode map[string]uint64
}

const diskBlock = 512

// synced notes that a file, as it is now, is on the disk.
func (d *disk) synced(t require.TestingT, name string) {
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	require.NoError(t, err)
	d.safe[name] = b
	d.inode[name] = inode(t, filepath.Join(d.dir, name))
}

// renamed notes a log that was written anew: it was synced before it got its name.
func (d *disk) renamed(t require.TestingT) {
	path := filepath.Join(d.dir, logName)
	if _, err := os.Stat(path); err == nil && inode(t, path) != d.inode[logName] {
		d.synced(t, logName)
	}
}

// fail is a loss of power: of what was not synced any part is on the disk, in any order. Blocks that the file system had
// only just given to a file hold zeros or what somebody else has left there.
func (d *disk) fail(t *rapid.T, list []string) {
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)) //nolint:gosec // not a secret
	for _, name := range list {
		path := filepath.Join(d.dir, name)
		now, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		safe, known := d.safe[name]
		if !known && random.IntN(3) == 0 {
			require.NoError(t, os.Remove(path)) // its name was not synced either
			continue
		}
		least := min(len(safe), len(now)) // shorter than before only where Take has cut
		size := least + random.IntN(len(now)-least+1)
		if random.IntN(2) == 0 {
			size = len(now)
		}
		left := bytes.Clone(now[:size])
		for at := 0; at < size; at += diskBlock {
			block := left[at:min(at+diskBlock, size)]
			if at+len(block) <= len(safe) && bytes.Equal(block, safe[at:at+len(block)]) {
				continue // nothing was written there
			}
			switch random.IntN(3) {
			case 0: // written
			case 1:
				clear(block)
			case 2:
				for i := range block {
					block[i] = byte(random.Uint32())
				}
			}
			if at < len(safe) { // what stood there before is there in any case: nothing is written over
				copy(block, safe[at:])
			}
		}
		require.NoError(t, os.WriteFile(path, left, 0o600))
		d.safe[name] = left
		d.inode[name] = inode(t, path)
	}
}

// A trace that is taken up is a beginning of what was written, and at least as long as what was acknowledged: after
// any number of kills and losses of power that keep any part of what was not synced.
func TestWhatIsTakenUpIsABeginningAndHasWhatWasAcknowledged(t *testing.T) {
	base, run := t.TempDir(), 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		dir := filepath.Join(base, strconv.Itoa(run))
		const jobs = 3
		d := &disk{dir: dir, safe: make(map[string][]byte), inode: make(map[string]uint64)}
		var (
			s       *Spool
			files   [jobs + 1]*File
			written [jobs + 1][]byte // longest trace that there ever was
			acked   [jobs + 1]int64
			kernel  = boot{1}
		)
		name := func(job int64) string { return Key{Job: job, Epoch: 1, Limit: 1}.name() }
		all := []string{logName}
		for job := int64(1); job <= jobs; job++ {
			all = append(all, name(job))
		}
		start := func() {
			var err error
			s, _, err = Open(dir, 0, 0)
			require.NoError(t, err)
			s.log.boot, s.log.least = kernel, 20*recordSize
			for job := int64(1); job <= jobs; job++ {
				if _, ok := s.Find(job); !ok {
					require.Zero(t, acked[job], "a file that was acknowledged is there")
					files[job], err = s.Create(Key{Job: job, Epoch: 1, Limit: 1})
					require.NoError(t, err)
					continue
				}
				f, loss, err := s.Take(job)
				require.NoError(t, err)
				require.Zero(t, loss.Acknowledged)
				require.LessOrEqual(t, f.Length(), int64(len(written[job])))
				require.GreaterOrEqual(t, f.Length(), acked[job])
				got := make([]byte, f.Length())
				_, err = f.ReadAt(got, 0)
				require.NoError(t, err)
				require.True(t, bytes.Equal(got, written[job][:len(got)]), "a beginning of what was written")
				require.Equal(t, crc32.ChecksumIEEE(got), f.CRC())
				require.LessOrEqual(t, f.Synced(), f.Length())
				files[job] = f
			}
			d.renamed(t)
		}
		stop := func() {
			for _, f := range files[1:] {
				require.NoError(t, f.f.Close()) // a kill writes no last words
			}
			require.NoError(t, s.Close())
		}
		job := rapid.Int64Range(1, jobs)
		start()
		marks := func() []Mark {
			var list []Mark
			for _, j := range rapid.SliceOfNDistinct(job, 1, jobs, rapid.ID).Draw(t, "jobs") {
				list = append(list, files[j].Mark(files[j].Length(), files[j].CRC()))
			}
			return list
		}
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				f := files[job.Draw(t, "job")]
				at, id := f.Length(), f.key.Job
				n := rapid.SampledFrom([]int64{1, 63, diskBlock, 1500}).Draw(t, "bytes")
				for int64(len(written[id])) < at+n {
					// Whatever is sent again is what was sent before.
					written[id] = binary.LittleEndian.AppendUint32(written[id], uint32(len(written[id])*2654435761)+uint32(id)) //nolint:gosec // any bytes
				}
				require.NoError(t, f.Append(written[id][at:at+n]))
			},
			"commit": func(t *rapid.T) {
				list := marks()
				for _, err := range s.Commit(list) {
					require.NoError(t, err)
				}
				for _, m := range list {
					d.synced(t, m.file.key.name())
					acked[m.file.key.Job] = m.file.Synced()
					require.Equal(t, m.Length(), m.file.Synced())
				}
				d.synced(t, logName)
				// The folder was synced: names that are new are there as well, with any content.
				for j := int64(1); j <= jobs; j++ {
					if _, known := d.safe[name(j)]; !known {
						d.safe[name(j)] = nil
					}
				}
			},
			"half a commit": func(*rapid.T) { // before the sync
				var list []checkpoint
				for _, m := range marks() {
					list = append(list, checkpoint{
						job: m.file.key.Job, epoch: m.file.key.Epoch, length: m.length, crc: m.crc, acked: m.file.Synced(),
					})
				}
				_, err := s.log.append(list)
				require.NoError(t, err)
				d.renamed(t)
			},
			"kill": func(*rapid.T) {
				stop()
				start()
			},
			"loss of power": func(t *rapid.T) {
				stop()
				d.fail(t, all)
				kernel[0]++
				start()
			},
		})
		stop()
	})
}
