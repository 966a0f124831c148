//go:build linux

package fleettest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/faults"
)

// atOnce bounds the cells that run at the same time: they mostly wait.
const atOnce = 6

// outcome is what docs/design/failures.md says of a cell.
type outcome struct {
	status string // of the job in GitLab
	reason string // its failure_reason
	// where is the agent on which the script began, once; "" if it did not begin.
	where string
	// trace stands at the end of a trace that was cut off, or somewhere in one that is whole; see whole.
	trace string
	// whole: GitLab has exactly the trace that was reported, by its checksum.
	whole bool
	// attempts that GitLab made of the job; 0 is 1.
	attempts int
}

func success(where string) outcome { return outcome{status: "success", where: where, whole: true} }

// begins is where the script has begun when nothing more happens to the job.
func begins(at phase) string {
	if at == claimed || at == accepted || at == preparing {
		return ""
	}
	return first
}

// lost is the end of a job whose agent was lost.
func lost(at phase) outcome {
	return outcome{
		status: "failed", reason: "runner_system_failure", where: begins(at), whole: true,
		trace: "ERROR: Job failed (system failure): agent first was lost: nothing was heard of it since ",
	}
}

// failure is a row.
type failure struct {
	name    string
	options matrixOptions
	// strike lets the failure happen to a job that stands where it is to stand, and lets the job and what failed go on.
	strike func(s *scene)
	expect func(at phase) outcome
}

// shortLease is for failures that are over only when an agent is given up.
const shortLease = "lease: {stop_after: 4s, lost_after: 8s}\n"

var failures = []failure{
	{
		name: "agent-killed",
		strike: func(s *scene) {
			s.agents[first].signal(s.t, syscall.SIGKILL)
			switch s.phase {
			case preparing, running, uploading: // the job goes on meanwhile
				s.leave()
				s.untilResult()
				s.startFirst()
			default:
				s.startFirst()
				s.leave()
			}
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name:    "host-lost",
		options: matrixOptions{host: true, config: shortLease},
		strike: func(s *scene) {
			s.killHost()
			require.NoError(s.t, os.RemoveAll(filepath.Join(s.dir, first)))
			delete(s.agents, first)
			s.startSecond()
			s.leave()
		},
		expect: func(at phase) outcome {
			switch at {
			case claimed, accepted:
				return success(second)
			case reporting:
				return success(first)
			}
			return lost(at)
		},
	},
	{
		name:    "host-rebooted",
		options: matrixOptions{host: true},
		strike: func(s *scene) {
			s.killHost()
			s.startFirst()
			s.leave()
		},
		expect: func(at phase) outcome {
			switch at {
			case preparing, running, uploading:
				return outcome{
					status: "failed", reason: "runner_system_failure", where: begins(at), whole: true,
					trace: "was restarted while the job ran",
				}
			}
			return success(first)
		},
	},
	{name: "network-cut-both-ways", strike: cut(faults.Both), expect: elsewhere},
	{name: "network-cut-to-plane", strike: cut(faults.ToPlane), expect: elsewhere},
	{name: "network-cut-to-agents", strike: cut(faults.ToAgents), expect: elsewhere},
	{
		name:    "network-cut-for-good",
		options: matrixOptions{config: shortLease},
		strike: func(s *scene) {
			s.network.Cut(faults.Both)
			s.untilOnline(first, false)
			switch s.phase {
			case claimed, accepted:
				s.startSecond()
				s.leave()
			case reporting:
				s.leave()
			default:
				s.thaw(first)
				// Nobody opens the script's end: the agent stops the job before the control plane gives it up.
				s.until("the job is given up", func() bool {
					now, err := s.gitlab.Pipeline(s.run.ID)
					return err == nil && now.Jobs[0].Status == "failed"
				})
				require.Empty(s.t, s.leftovers(), "nothing of the job runs when it is reported as lost")
			}
			s.wait()
			s.network.Heal()
			s.untilOnline(first, true)
		},
		expect: func(at phase) outcome {
			switch at {
			case claimed, accepted:
				return success(second)
			case reporting:
				return success(first)
			}
			return lost(at)
		},
	},
	{
		name: "plane-killed",
		strike: func(s *scene) {
			s.plane.signal(s.t, syscall.SIGKILL)
			s.leave()
			s.startAgain()
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		// A backup from before the job: it is not known any more.
		name:    "store-restored-without-the-job",
		options: matrixOptions{backup: true, coordinator: coordinator.Options{AckExpiry: 3 * time.Second}},
		strike:  restored,
		expect: func(at phase) outcome {
			if at == claimed { // GitLab gets no confirmation and offers the job again
				o := success(first)
				o.attempts = 2
				return o
			}
			if at == accepted {
				return outcome{status: "running"}
			}
			return outcome{status: "running", where: first}
		},
	},
	{
		// A backup in which the job is claimed and nothing more.
		name:    "store-restored-with-the-claim",
		options: matrixOptions{backupClaimed: true},
		strike:  restored,
		expect:  func(phase) outcome { return success(first) },
	},
	{
		name: "gitlab-down",
		strike: func(s *scene) {
			s.door.shut()
			s.leave()
			s.lasts(3 * time.Second)
			s.door.open()
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name: "gitlab-5xx",
		strike: func(s *scene) {
			s.spoil(faults.Fault{Kind: faults.Status, Code: http.StatusServiceUnavailable}, 2)
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name: "gitlab-429",
		strike: func(s *scene) {
			s.spoil(faults.Fault{
				Kind: faults.Status, Code: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}},
			}, 2)
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name: "gitlab-answers-lost",
		strike: func(s *scene) {
			s.spoil(faults.Fault{Kind: faults.Reset, AfterEffect: true}, 2)
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name:    "plane-disk-full",
		options: matrixOptions{planeDisk: true},
		strike: func(s *scene) {
			s.fill("plane")
			s.leave()
			switch s.phase {
			case running: // there is more to write than fits; claiming goes on within a minute of there being room
				s.until("the control plane has noticed", func() bool {
					return strings.Contains(s.plane.log.String(), "traces cannot be written")
				})
				claims := s.gitlab.Stats().Claims
				other := pipeline(s.t, s.gitlab, s.project, "other: {script: [echo hello]}")
				s.lasts(2 * time.Second)
				require.Equal(s.t, claims, s.gitlab.Stats().Claims, "nothing is claimed")
				s.empty("plane", planeDiskSize)
				require.Equal(s.t, "success", wait(s.t, s.gitlab, other).Status)
			default:
				s.lasts(3 * time.Second)
				s.empty("plane", planeDiskSize)
			}
		},
		expect: func(phase) outcome { return success(first) },
	},
	{
		name:    "agent-disk-full",
		options: matrixOptions{agentDisk: true},
		strike: func(s *scene) {
			s.fill(first)
			switch s.phase {
			case claimed:
				s.startSecond()
				s.leave()
			default:
				s.leave()
			}
			s.wait()
			s.empty(first, agentDiskSize)
		},
		expect: func(at phase) outcome {
			switch at {
			case claimed:
				return success(second)
			case finishing, reporting:
				return success(first)
			}
			o := outcome{
				status: "failed", reason: "runner_system_failure", where: begins(at), whole: true, trace: "no space left on device",
			}
			if at == preparing { // its own command, which writes a file, fails first
				o.reason, o.where = "script_failure", first
			}
			return o
		},
	},
}

// TestFailureMatrix is docs/design/failures.md, a cell each. The cells mostly wait, so more of them run at once than there
// are processors.
func TestFailureMatrix(t *testing.T) {
	slots := make(chan struct{}, atOnce)
	var rows sync.WaitGroup
	for row, f := range failures {
		rows.Go(func() {
			t.Run(f.name, func(t *testing.T) {
				var cells sync.WaitGroup
				for column, at := range phases {
					cells.Go(func() {
						slots <- struct{}{}
						defer func() { <-slots }()
						t.Run(string(at), func(t *testing.T) { f.happens(t, fmt.Sprintf("127.77.%d.%d", row+1, column+1), at) })
					})
				}
				cells.Wait()
			})
		})
	}
	rows.Wait()
}

// happens is one cell.
func (f *failure) happens(t *testing.T, ip string, at phase) {
	if f.options.host && os.Geteuid() != 0 {
		t.Skip("needs to be root: a host that can be lost is a PID namespace")
	}
	s := newScene(t, ip, at, f.options)
	s.reach()
	f.strike(s)
	s.verify(f.expect(at))
}

// A claim whose answer is lost is a job that GitLab has given away and nobody knows of.
func TestAClaimWhoseAnswerIsLost(t *testing.T) {
	for i, legacy := range []bool{false, true} {
		t.Run(map[bool]string{false: "two-phase commit", true: "without two-phase commit"}[legacy], func(t *testing.T) {
			t.Parallel()
			s := newScene(t, fmt.Sprintf("127.77.101.%d", i+1), claimed, matrixOptions{
				coordinator: coordinator.Options{LegacyCommit: legacy, AckExpiry: 3 * time.Second},
			})
			answer := s.holds.hold(http.StatusCreated, claims)
			s.createPipeline()
			s.arrived(answer)
			answer.let <- false
			s.open(s.end)
			if !legacy { // GitLab gets no confirmation and offers the job again
				o := success(first)
				o.attempts = 2
				s.verify(o)
				return
			}
			given := s.run
			s.createPipeline()
			s.verify(success(first)) // the runner goes on with the next one
			lost, err := s.gitlab.Pipeline(given.ID)
			require.NoError(t, err)
			require.Equal(t, "running", lost.Jobs[0].Status, "until GitLab drops it for its silence, after an hour")
		})
	}
}

// cut is a cut that is healed in time. Both sides notice it; what had not started goes to another agent.
func cut(d faults.Direction) func(s *scene) {
	return func(s *scene) {
		s.network.Cut(d)
		s.untilOnline(first, false)
		switch s.phase {
		case claimed, accepted:
			s.startSecond()
			s.leave()
			s.wait()
		case reporting:
			s.leave()
			s.wait()
		default: // the job goes on, and its result waits
			s.leave()
			s.untilResult()
		}
		s.network.Heal()
		s.untilOnline(first, true)
	}
}

func elsewhere(at phase) outcome {
	if at == claimed || at == accepted {
		return success(second)
	}
	return success(first)
}

// restored is the loss of all that the control plane wrote since a backup.
func restored(s *scene) {
	s.plane.signal(s.t, syscall.SIGKILL)
	if s.phase == reporting { // the result is on its way nowhere
		s.held.let <- false
		s.held = nil
	}
	s.leave()
	switch s.phase {
	case preparing, running, uploading, finishing:
		s.untilResult()
	}
	s.restore()
	s.startAgain()
}

// startAgain starts the control plane and waits for its agents.
func (s *scene) startAgain() {
	s.t.Helper()
	s.finished = append(s.finished, s.plane)
	s.startPlane()
	s.untilOnline(first, true)
}

// spoil lets requests go wrong until so many have, and the job go on meanwhile.
func (s *scene) spoil(f faults.Fault, times int) {
	s.t.Helper()
	s.faults.Set(faults.Rule{Fault: f, Times: times, Match: func(r *http.Request) bool {
		return s.phase == claimed || !strings.HasSuffix(r.URL.Path, "/jobs/request")
	}})
	if s.held != nil { // what is under way is spoilt, too
		s.held.let <- false
		s.held = nil
	}
	s.leave()
	s.until("requests went wrong", func() bool { return s.faults.Injected()[f.Kind] >= times })
}

// wait waits for the end of the pipeline in GitLab.
func (s *scene) wait() coordinator.Pipeline {
	s.t.Helper()
	return wait(s.t, s.gitlab, s.run)
}

// job is what counts of the pipeline in GitLab.
func (s *scene) job() coordinator.Job {
	s.t.Helper()
	now, err := s.gitlab.Pipeline(s.run.ID)
	require.NoError(s.t, err)
	require.Len(s.t, now.Jobs, 1)
	return now.Jobs[0]
}

// verify checks what has become of the job.
func (s *scene) verify(want outcome) {
	s.t.Helper()
	if want.status != "running" {
		s.wait()
	}
	s.until("the control plane holds no job", func() bool {
		jobs, err := s.jobs()
		return err == nil && len(jobs) == 0
	})
	s.until("no process of a job is left", func() bool { return len(s.leftovers()) == 0 })
	for name := range s.agents {
		s.until("no folder of a job is left", func() bool {
			left, err := os.ReadDir(filepath.Join(s.dir, name, "jobs"))
			return err == nil && len(left) == 0
		})
	}
	job := s.job()
	require.Equal(s.t, want.status, job.Status)
	require.Equal(s.t, want.reason, string(job.FailureReason))
	require.Equal(s.t, max(want.attempts, 1), job.Attempt)
	if want.where == "" {
		require.Empty(s.t, s.mark("begun"), "the script did not begin")
	} else {
		require.Len(s.t, s.mark("begun"), 1, "the script began once")
		require.Contains(s.t, s.mark("begun")[0], "/"+want.where+"/", "the script began on the agent")
	}
	require.LessOrEqual(s.t, s.lines("prepared"), 1, "the job was prepared once")
	text := string(trace(s.t, s.gitlab, job))
	require.Contains(s.t, text, want.trace)
	if want.status == "success" {
		require.Contains(s.t, text, "first half\n")
		require.Contains(s.t, text, "\n"+strings.Repeat(".", secondHalf)+"\nsecond half\n")
		files, err := s.gitlab.Artifacts(job.ID)
		require.NoError(s.t, err)
		require.Len(s.t, files, 1)
	}
	if want.whole {
		requireWhole(s.t, job)
	}
}
