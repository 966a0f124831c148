package conformance

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// interruptEvery is how many acknowledged writes are between two interruptions.
const interruptEvery = 60

// Interrupted writes to an open store from many sides while its database is interrupted again and again, by interrupt,
// which returns when the database can be used again. No caller may notice anything but time, nothing that was acknowledged
// may be missing and nothing be there twice. open opens the same store once more.
func Interrupted(t *testing.T, s store.Store, open func() store.Store, rounds int, interrupt func()) {
	var mu sync.Mutex
	acknowledged := map[int64]string{}
	writes := 0
	more := make(chan struct{}, 1)
	say := func(job int64, did string) {
		mu.Lock()
		defer mu.Unlock()
		acknowledged[job] = did
		if writes++; writes%interruptEvery == 0 {
			select {
			case more <- struct{}{}:
			default: // one is on its way
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	audits := make([]int, crashCallers)
	for caller := range int64(crashCallers) {
		group.Go(func() {
			for n := caller; ctx.Err() == nil; n += crashCallers {
				if err := oneLife(s, n, say); err != nil {
					t.Errorf("job %d: %v", n, err)
					cancel()
					return
				}
				if err := s.AppendAudit(context.Background(), store.AuditEntry{At: start, Actor: "caller"}); err != nil {
					t.Errorf("audit log: %v", err)
					cancel()
					return
				}
				audits[caller]++
				if _, err := s.LoadJobs(context.Background()); err != nil {
					t.Errorf("load jobs: %v", err)
				}
			}
		})
	}
	for range rounds {
		select {
		case <-more:
			interrupt()
		case <-ctx.Done():
		case <-time.After(2 * time.Minute):
			t.Error("the store does not go on")
		}
	}
	cancel()
	group.Wait()
	require.NoError(t, s.Close())

	s = open()
	defer func() { require.NoError(t, s.Close()) }()
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	have := map[int64]store.Job{}
	for _, job := range jobs {
		have[job.GitLabJobID] = job
	}
	require.Len(t, have, len(jobs))
	for n, did := range acknowledged {
		requireSurvived(t, s, n, did, have)
		delete(have, n)
	}
	require.Empty(t, have, "all writes were acknowledged")
	total := 0
	for _, n := range audits {
		total += n
	}
	log, err := s.Audit(t.Context(), 0, store.MaxAudit)
	require.NoError(t, err)
	require.Len(t, log, total, "each entry once")
	t.Logf("%d writes of jobs, %d of the audit log", writes, total)
}
