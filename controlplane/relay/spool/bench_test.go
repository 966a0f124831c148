package spool

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkCommit says how long a group of jobs takes to be synced, with its checkpoints and without.
func BenchmarkCommit(b *testing.B) {
	for _, jobs := range []int{1, 10, 100} {
		for name, commit := range map[string]func(s *Spool, marks []Mark){
			"with": func(s *Spool, marks []Mark) {
				for _, err := range s.Commit(marks) {
					require.NoError(b, err)
				}
			},
			"without": func(_ *Spool, marks []Mark) {
				each(len(marks), syncsAtOnce, func(i int) { require.NoError(b, marks[i].file.sync()) })
			},
		} {
			b.Run(fmt.Sprintf("jobs=%d/%s", jobs, name), func(b *testing.B) {
				s, _, err := Open(b.TempDir(), 0, 0)
				require.NoError(b, err)
				defer s.Close()
				files := make([]*File, jobs)
				for i := range files {
					files[i], err = s.Create(Key{Job: int64(i + 1), Epoch: 1, Limit: 1})
					require.NoError(b, err)
					defer files[i].Close()
				}
				line := make([]byte, 1000)
				var took time.Duration
				for b.Loop() {
					marks := make([]Mark, jobs)
					for i, f := range files {
						require.NoError(b, f.Append(line))
						marks[i] = f.Mark(f.Length(), f.CRC())
					}
					began := time.Now()
					commit(s, marks)
					took += time.Since(began)
				}
				b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "ms/group")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
