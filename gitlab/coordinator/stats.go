package coordinator

import "sync/atomic"

// Stats counts what runners did, since the start.
type Stats struct {
	Requests     int64 // POST /jobs/request that were authenticated
	Claims       int64 // answered by 201
	NoJob        int64 // answered by 204 after a look at the queue
	Cached       int64 // answered by 204 because last_update is the present queue value
	Conflicts    int64 // answered by 409
	Held         int64 // held, and of these:
	HeldChanged  int64 // ended by a change
	HeldTimeouts int64 // ended by time
	Acks         int64 // confirmations of two-phase commit
	KeepAlives   int64 // PUT state=pending
	AckExpired   int64 // jobs whose runner never confirmed
	Started      int64 // jobs that became running
	Finished     int64 // final updates that ended a job
	Accepted     int64 // final updates answered by 202
	BadChecksums int64 // final updates whose checksum differs from what was received
	BadSizes     int64 // the same for the size
	Patches      int64 // PATCH trace answered by 202
	TraceBytes   int64
	RangeErrors  int64 // PATCH trace answered by 416
	TraceBusy    int64 // PATCH trace answered by 409
	Forbidden    int64 // answered by 403
	LateRequests int64 // requests with the right token for a job that has ended
	StuckDropped int64 // running jobs dropped for silence or time
	Uploads      int64 // artifacts that were kept
	UploadBytes  int64
	Downloads    int64 // of artifacts, each part of one
	Redirects    int64 // to the object store
	GitRequests  int64 // authenticated requests to a repository
	GitRefused   int64
}

type counters struct {
	requests, claims, noJob, cached, conflicts, held, heldChanged, heldTimeouts, acks, keepAlives, ackExpired, started,
	finished, accepted, badChecksums, badSizes, patches, traceBytes, rangeErrors, traceBusy, forbidden, late, stuck,
	uploads, uploadBytes, downloads, redirects, gitRequests, gitRefused atomic.Int64
}

// Stats returns the counters.
func (c *Coordinator) Stats() Stats {
	s := &c.stats
	return Stats{
		Requests: s.requests.Load(), Claims: s.claims.Load(), NoJob: s.noJob.Load(), Cached: s.cached.Load(),
		Conflicts: s.conflicts.Load(), Held: s.held.Load(), HeldChanged: s.heldChanged.Load(), HeldTimeouts: s.heldTimeouts.Load(),
		Acks: s.acks.Load(), KeepAlives: s.keepAlives.Load(), AckExpired: s.ackExpired.Load(), Started: s.started.Load(),
		Finished: s.finished.Load(), Accepted: s.accepted.Load(), BadChecksums: s.badChecksums.Load(), BadSizes: s.badSizes.Load(),
		Patches: s.patches.Load(), TraceBytes: s.traceBytes.Load(), RangeErrors: s.rangeErrors.Load(), TraceBusy: s.traceBusy.Load(),
		Forbidden: s.forbidden.Load(), LateRequests: s.late.Load(), StuckDropped: s.stuck.Load(),
		Uploads: s.uploads.Load(), UploadBytes: s.uploadBytes.Load(), Downloads: s.downloads.Load(), Redirects: s.redirects.Load(),
		GitRequests: s.gitRequests.Load(), GitRefused: s.gitRefused.Load(),
	}
}
