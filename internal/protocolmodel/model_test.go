package protocolmodel

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// Messages between control plane and agents are delivered, lost with their connection, repeated, or arrive on a session that
// the sender has given up; both sides are restarted, the control plane between any two of its writes; hosts are lost;
// GitLab answers anything it may answer, or an answer is lost, or a request takes effect after nobody waits for it any
// more; GitLab cancels jobs and loses traces; time passes in silence.
//
// At every step: of all attempts at a job at most one is ever begun, and only when GitLab has the job as running; nothing of
// a job runs once its end was reported; every result that is reported of a job is the same; GitLab's trace is a prefix of
// what the job wrote, but for the control plane's own last line; no job is given up while agents are heard of, and
// no result is lost that an agent was told is safe. When all is well again every job ends, a successful one
// with its whole trace, and neither side holds anything of any.
//
// A plan is drawn first and then carried out: goroutines, files and jitter leave some things to chance, so one that has
// failed is carried out several times while it is made shorter.
func TestTheFleetKeepsItsPromises(t *testing.T) {
	attempts := 1
	rapid.Check(t, func(rt *rapid.T) {
		twoPhase := rapid.Bool().Draw(rt, "two-phase commit")
		agents := rapid.IntRange(1, 3).Draw(rt, "agents")
		var steps []step
		rt.Repeat(map[string]func(*rapid.T){"step": func(rt *rapid.T) { steps = append(steps, drawStep(rt)) }})
		for range attempts {
			broken, log := carryOut(t, twoPhase, agents, steps)
			if broken != "" { // rapid compares the words of failures: what differs from time to time is in the log
				attempts = 10
				rt.Logf("%s", log)
				rt.Fatal(broken)
			}
		}
	})
}

// carryOut runs a plan in virtual time and returns the first promise that was broken, and what happened until then.
func carryOut(t *testing.T, twoPhase bool, agents int, steps []step) (broken, log string) {
	dir := memory(t)
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		w := &world{dir: dir, start: time.Now(), begins: make(map[int64]*process)}
		defer func() {
			if p := recover(); p != nil {
				failure, ok := p.(brokenPromise)
				if !ok {
					panic(p)
				}
				broken = string(failure)
			}
			w.close()
			log = w.log.String()
		}()
		w.open(twoPhase, agents)
		for _, s := range steps {
			w.do(s)
			w.check()
		}
		w.recover()
	})
	return broken, log
}

// memory is a folder that is synced in no time, where there is one: here a control plane's files outlive it, but no power is
// lost.
func memory(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "protocolmodel-"); err == nil { //nolint:usetesting // not where tests have theirs
		return dir
	}
	return t.TempDir()
}

// brokenPromise ends a plan.
type brokenPromise string

// step is one thing that happens; which of those that are there it happens to is said by its numbers.
type step struct {
	what    action
	numbers [3]int
}

func (s step) GoString() string { return fmt.Sprintf("%s %v", s.what, s.numbers) }

func drawStep(t *rapid.T) step {
	number := rapid.IntRange(0, 11)
	return step{rapid.SampledFrom(actions).Draw(t, "what"), [3]int{number.Draw(t, "0"), number.Draw(t, "1"), number.Draw(t, "2")}}
}

// pick is one of n things.
func (s *step) pick(n int) int {
	k := s.numbers[0] % n
	s.numbers[0], s.numbers[1], s.numbers[2] = s.numbers[1], s.numbers[2], s.numbers[0]
	return k
}

func (s *step) coin() bool { return s.pick(2) == 1 }

// world is everything that there is.
type world struct {
	dir    string
	start  time.Time
	gitlab *gitlab
	plane  *plane // nil: it is down
	agents []*agent
	links  []*link

	mu     sync.Mutex
	begins map[int64]*process // by GitLab's job
	silent time.Duration      // how long nothing was heard of an agent, all in all
	losses bool               // a host was lost
	late   []lateMessage
	broken string // the first promise that was broken
	log    strings.Builder
}

func (w *world) open(twoPhase bool, agents int) {
	w.gitlab = &gitlab{w: w, twoPhase: twoPhase}
	w.startPlane()
	for i := range agents {
		name := string(rune('a' + i))
		a := &agent{w: w, id: name, host: name, slots: 1 + i, disk: make(map[ledger.Ref]*process)}
		w.agents = append(w.agents, a)
		a.start()
		a.connect()
	}
}

// logf notes what happens, for people.
func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.log, "%8.2fs %s\n", time.Since(w.start).Seconds(), fmt.Sprintf(format, args...))
}

func (w *world) close() {
	for _, a := range w.agents {
		a.disconnect()
	}
	if w.plane != nil {
		w.stopPlane(true)
	}
}

// must is for what the model itself needs.
func (w *world) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("the model: %v", err))
	}
}

// breaks notes a broken promise: it may be found on any goroutine.
func (w *world) breaks(what, format string, args ...any) {
	w.logf("BROKEN: %s: %s", what, fmt.Sprintf(format, args...))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == "" {
		w.broken = what
	}
}

// fail ends a plan.
func (w *world) fail(what, format string, args ...any) {
	w.breaks(what, format, args...)
	panic(brokenPromise(what))
}

// began is called when a job begins on a host.
func (w *world) began(a *agent, p *process) {
	w.logf("%s begins job %v, GitLab's %d", a, p.ref, p.gitlab)
	w.mu.Lock()
	other, again := w.begins[p.gitlab]
	w.begins[p.gitlab] = p
	w.mu.Unlock()
	if again {
		w.breaks("a job is begun twice", "as %v and as %v", other.ref, p.ref)
	}
	w.gitlab.mu.Lock()
	defer w.gitlab.mu.Unlock()
	j := w.gitlab.jobs[p.gitlab-1]
	if j.status == runnerapi.StatePending {
		w.breaks("a job is begun that is pending in GitLab", "%v", p.ref)
	}
	if len(j.finals) > 0 {
		w.breaks("a job is begun after its end was reported", "%v", p.ref)
	}
}

// reported is called when the control plane reports the end of a job.
func (w *world) reported(id int64, u runnerapi.UpdateRequest) {
	w.gitlab.mu.Lock()
	defer w.gitlab.mu.Unlock()
	j := w.gitlab.jobs[id-1]
	if len(j.finals) > 0 && (j.finals[0].State != u.State || j.finals[0].FailureReason != u.FailureReason) {
		w.breaks("a job has two ends", "job %d, %s (%s) and %s (%s)", id, j.finals[0].State, j.finals[0].FailureReason, u.State, u.FailureReason)
	}
	j.finals = append(j.finals, u)
	if p := w.begins[id]; p != nil && p.safe && p.result.GetState() != u.State {
		w.breaks("a result that was acknowledged is not what is reported", "job %d: %s, and it ended with %s", id, u.State, p.result.GetState())
	}
	if u.FailureReason == runnerapi.ReasonRunnerSystem && !w.losses && w.silent < stopAfter {
		w.breaks("a job is given up although nothing was lost", "job %d", id)
	}
}

// check is made after each step.
func (w *world) check() {
	w.settle()
	w.gitlab.mu.Lock()
	for _, a := range w.agents {
		for _, p := range append(a.processes(), a.orphans...) {
			if j := w.gitlab.jobs[p.gitlab-1]; p.runs() && len(j.finals) > 0 {
				w.breaks("a job runs although its end was reported", "%v on %s, %q", p.ref, a, lastLine(j.trace))
			}
		}
	}
	for _, j := range w.gitlab.jobs {
		w.checkTrace(j)
		if j.results > 1 {
			w.breaks("a job has two results in GitLab", "job %d", j.id)
		}
	}
	w.gitlab.mu.Unlock()
	w.mu.Lock()
	broken := w.broken
	w.mu.Unlock()
	if broken != "" {
		panic(brokenPromise(broken))
	}
}

// lastLines are how a line of the control plane's own begins.
var lastLines = []string{"ERROR: Job failed (system failure): ", "ERROR: Job failed: ", "WARNING: the rest of this trace is lost: "}

func lastLine(trace []byte) []byte {
	trace = bytes.TrimRight(trace, "\n")
	return trace[bytes.LastIndexByte(trace, '\n')+1:]
}

func (w *world) checkTrace(j *gitlabJob) {
	var wrote []byte
	if p := w.begins[j.id]; p != nil {
		wrote = content(p.ref, min(p.length(), len(j.trace)))
	}
	same := 0
	for same < min(len(wrote), len(j.trace)) && wrote[same] == j.trace[same] {
		same++
	}
	rest := strings.TrimLeft(string(j.trace[same:]), "\n")
	if rest != "" && !slices.ContainsFunc(lastLines, func(line string) bool { return strings.HasPrefix(rest, line) }) {
		w.breaks("GitLab's trace is no prefix of what the job wrote", "job %d: after %d bytes it has %.60q", j.id, same, rest)
	}
}

// settle lets both sides do what takes no time, and a little of what does.
func (w *world) settle() {
	time.Sleep(30 * time.Millisecond)
	w.pass()
}

func (w *world) pass() {
	synctest.Wait()
	for _, a := range w.agents {
		a.pass()
	}
	synctest.Wait()
	w.links = slices.DeleteFunc(w.links, (*link).dead)
}

// let lets time pass in which nothing is delivered.
func (w *world) let(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
		time.Sleep(min(time.Until(until), time.Second))
		w.pass()
	}
}

// letAlive lets time pass in which all messages arrive.
func (w *world) letAlive(d time.Duration) {
	for until := time.Now().Add(d); time.Now().Before(until); {
		step := min(time.Until(until), time.Second)
		if slices.ContainsFunc(w.agents, func(a *agent) bool { return a.link == nil || a.link.session.ctx.Err() != nil }) {
			w.silent += step
		}
		time.Sleep(step)
		w.pump()
	}
}

// deliver moves the oldest message of one of a link's four queues; false if it is empty.
func (l *link) deliver(queue int) bool {
	up, down := l.session.count()
	traceUp, traceDown := l.trace.count()
	switch {
	case queue == 0 && up > 0:
		l.session.arrive()
	case queue == 1 && down > 0:
		if m := l.session.takeDown(); !l.closed {
			l.agent.receive(m)
		}
	case queue == 2 && traceUp > 0:
		l.trace.arrive()
	case queue == 3 && traceDown > 0:
		m := l.trace.takeDown()
		if l.closed {
			break
		}
		l.heard = time.Now()
		select {
		case l.answers <- m:
		case <-l.ctx.Done():
		}
	default:
		return false
	}
	synctest.Wait()
	return true
}

// pump delivers all that is on its way, and what follows from it.
func (w *world) pump() {
	for moved, rounds := true, 0; moved && rounds < 1000; rounds++ {
		moved = false
		for _, l := range slices.Clone(w.links) {
			for queue := range 4 {
				moved = l.deliver(queue) || moved
			}
		}
	}
	w.pass()
}

// answer is what becomes of a request to GitLab.
type fate string

const (
	works     fate = "works"
	noAnswer  fate = "works, the answer is lost"
	lost      fate = "is lost"
	refused   fate = "500"
	tooMany   fate = "429"
	conflict  fate = "409"
	forgotten fate = "the trace is lost before it"
)

func (w *world) answer(n int, f fate) {
	c := w.gitlab.take(n)
	w.logf("%v: %s", c, f)
	var a answer
	switch f {
	case works:
		a = w.gitlab.serve(c)
	case forgotten:
		w.gitlab.mu.Lock()
		j := w.gitlab.jobs[c.job-1]
		j.trace, j.forgotten = nil, true
		w.gitlab.mu.Unlock()
		a = w.gitlab.serve(c)
	case noAnswer:
		w.gitlab.serve(c)
		a.err = errNoAnswer
	case lost:
		a.err = errNoAnswer
	case refused:
		a.report = client.Report{Code: 500}
	case tooMany:
		a.report = client.Report{Code: 429, RetryAfter: time.Second}
	case conflict:
		a.report = client.Report{Code: 409}
	}
	c.answer <- a
	synctest.Wait()
}

func (w *world) answerAll() {
	for w.gitlab.pending() > 0 {
		w.answer(0, works)
	}
}

type action string

// What may happen. What goes well stands here more than once, for otherwise not much would.
const (
	newJob       action = "a new job"
	claim        action = "a claim"
	goesWell     action = "all goes well for a moment"
	deliver      action = "a message arrives"
	deliverAll   action = "all messages arrive"
	repeat       action = "a message is repeated"
	answerOne    action = "GitLab answers"
	answerAll    action = "GitLab works"
	cancel       action = "a job is canceled in GitLab"
	connect      action = "an agent connects"
	breakLink    action = "a connection breaks"
	silence      action = "time passes in silence"
	gitLabSilent action = "time passes and GitLab is silent"
	arriveLate   action = "a late repetition arrives"
	killPlane    action = "the control plane is killed"
	stopPlane    action = "the control plane is stopped"
	restartAgent action = "an agent is killed"
	loseHost     action = "a host is lost"
	fillDisk     action = "a disk is full, or has room again"
	begin        action = "a job begins"
	write        action = "a job writes"
	end          action = "a job ends"
)

var actions = []action{
	goesWell, goesWell, goesWell, newJob, newJob, claim, deliver, deliver, deliverAll, repeat, answerOne, answerOne, answerAll,
	arriveLate, cancel, connect, breakLink, silence, gitLabSilent, killPlane, stopPlane, restartAgent, loseHost, fillDisk, begin, write, end,
}

// do is one step; it does nothing if there is nothing that it could happen to.
func (w *world) do(s step) {
	w.logf("%#v", s)
	switch s.what {
	case newJob:
		w.newJob(s.coin())
	case claim:
		w.claim(s.coin())
	case goesWell:
		w.round()
	case deliver:
		w.deliverOne(s)
	case deliverAll:
		w.pump()
	case repeat:
		w.repeat(s)
	case answerOne:
		if n := w.gitlab.pending(); n > 0 {
			w.answer(s.pick(n), fates[s.pick(len(fates))])
		}
	case answerAll:
		w.answerAll()
	case cancel:
		if n := len(w.gitlab.jobs); n > 0 {
			w.gitlab.cancel(int64(1+s.pick(n)), s.coin())
		}
	case connect:
		w.connect(s)
	case breakLink:
		w.breakLink(s)
	case silence:
		d := silences[s.pick(len(silences))]
		w.silent += d
		w.let(d)
	case gitLabSilent:
		w.letAlive(silences[s.pick(len(silences))])
	case arriveLate:
		w.arriveLate(s)
	case killPlane, stopPlane:
		w.restartPlane(s.what == killPlane, s.coin())
	case restartAgent:
		w.restartAgent(s)
	case loseHost:
		a := w.agents[s.pick(len(w.agents))]
		kind := s.pick(3)
		w.losses = true
		a.lose(kind != 0, kind != 1)
	case fillDisk:
		a := w.agents[s.pick(len(w.agents))]
		a.full = !a.full
	case begin:
		if a, p := w.aProcess(&s, mayBegin); p != nil {
			a.begin(p)
		}
	case write:
		if a, p := w.aProcess(&s, (*process).runs); p != nil {
			a.write(p, 1+50*s.pick(12))
		}
	case end:
		if a, p := w.aProcess(&s, (*process).runs); p != nil {
			a.end(p, false)
		}
	}
}

var (
	fates    = []fate{works, noAnswer, lost, refused, tooMany, conflict, forgotten}
	silences = []time.Duration{time.Second, pingPeriod, 2*pingPeriod + time.Second, stopAfter / 2, stopAfter, lostAfter, ackExpiry}
)

const mostJobs = 4

func (w *world) newJob(reserved bool) {
	if len(w.gitlab.jobs) < mostJobs {
		w.gitlab.mu.Lock()
		w.gitlab.jobs = append(w.gitlab.jobs, &gitlabJob{id: int64(len(w.gitlab.jobs) + 1), status: runnerapi.StatePending})
		w.gitlab.mu.Unlock()
	}
	w.claim(reserved)
}

func (w *world) claim(reserved bool) {
	if w.plane != nil {
		w.plane.claim(reserved)
		synctest.Wait()
	}
}

func (w *world) deliverOne(s step) {
	type queue struct {
		link   *link
		number int
	}
	var full []queue
	for _, l := range w.links {
		up, down := l.session.count()
		traceUp, traceDown := l.trace.count()
		for q, n := range [...]int{up, down, traceUp, traceDown} {
			if n > 0 {
				full = append(full, queue{l, q})
			}
		}
	}
	if len(full) > 0 {
		q := full[s.pick(len(full))]
		q.link.deliver(q.number)
	}
}

// repeat sends a message of a session again, behind all that is on its way, or, if it is the agent's, keeps it to be sent
// again later. A refusal comes again at once or not at all: the control plane may take it for the word of an agent that has
// lost the job.
func (w *world) repeat(step step) {
	if len(w.links) == 0 {
		return
	}
	l := w.links[step.pick(len(w.links))]
	s := l.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch how := step.pick(3); {
	case how < 2 && len(s.up) > 0:
		n := step.pick(len(s.up))
		m := s.up[n]
		switch r := m.GetOfferReply(); {
		case m.GetHello() != nil:
		case r != nil && !r.GetAccepted():
			s.up = slices.Insert(s.up, n, proto.CloneOf(m))
		case how == 0:
			s.up = append(s.up, proto.CloneOf(m))
		default:
			w.late = append(w.late, lateMessage{l.agent, l.agent.host, proto.CloneOf(m)})
		}
	case how == 2 && len(s.down) > 0:
		s.down = append(s.down, proto.CloneOf(s.down[step.pick(len(s.down))]))
	}
}

// lateMessage is one that an agent on a host sends again later, on whatever session it has then.
type lateMessage struct {
	agent *agent
	host  string
	m     *fleetv1.SessionRequest
}

func (w *world) arriveLate(s step) {
	if len(w.late) == 0 {
		return
	}
	n := s.pick(len(w.late))
	late := w.late[n]
	w.late = slices.Delete(w.late, n, n+1)
	if late.agent.host == late.host {
		late.agent.send(late.m)
	}
}

func (w *world) connect(s step) {
	a := w.agents[s.pick(len(w.agents))]
	if w.plane == nil || a.link != nil {
		return
	}
	if !a.up {
		a.start()
	}
	a.connect()
}

// breakLink ends one end of a connection, or both.
func (w *world) breakLink(s step) {
	if len(w.links) == 0 {
		return
	}
	l, ends := w.links[s.pick(len(w.links))], s.pick(3)
	if ends != 0 && l.agent.link == l {
		l.agent.disconnect()
	}
	if ends != 1 {
		l.breakPlane()
	}
}

func (w *world) restartPlane(kill, staysDown bool) {
	if w.plane != nil {
		w.stopPlane(kill)
		if staysDown {
			return
		}
	}
	w.startPlane()
}

func (w *world) restartAgent(s step) {
	a := w.agents[s.pick(len(w.agents))]
	if !a.up {
		return
	}
	back := s.coin()
	a.crash(s.coin)
	if back {
		a.start()
	}
}

// aProcess is one of those that are so; nil if there is none.
func (w *world) aProcess(s *step, is func(p *process) bool) (*agent, *process) {
	var agents []*agent
	var some []*process
	for _, a := range w.agents {
		for _, p := range a.processes() {
			if is(p) {
				agents, some = append(agents, a), append(some, p)
			}
		}
	}
	if len(some) == 0 {
		return nil, nil
	}
	n := s.pick(len(some))
	return agents[n], some[n]
}

func mayBegin(p *process) bool {
	return p.launched && !p.begun && !p.ended && (p.until.IsZero() || time.Now().Before(p.until))
}

// round is what happens in a world without trouble, once: GitLab answers what it was asked, all messages arrive, jobs begin and
// write. What GitLab is asked then waits for the next.
func (w *world) round() {
	if w.plane == nil {
		w.startPlane()
	}
	for _, a := range w.agents {
		if !a.up {
			a.start()
		}
		if l := a.link; l != nil && l.session.ctx.Err() != nil {
			a.disconnect()
		}
		if a.link == nil {
			a.connect()
		}
	}
	w.answerAll()
	w.pump()
	for _, a := range w.agents {
		for _, p := range a.processes() {
			if mayBegin(p) {
				a.begin(p)
			}
			if p.runs() {
				a.write(p, 40)
			}
		}
	}
	w.settle()
	w.pump()
}

// recover is a world that gets well, until nothing is left to do.
func (w *world) recover() {
	for _, a := range w.agents {
		a.full = false
	}
	for rounds := 0; !w.over(); rounds++ {
		if rounds > 2000 {
			w.fail("it does not end", "%s", w.left())
		}
		w.round()
		for _, a := range w.agents {
			for _, p := range a.processes() {
				if p.runs() {
					a.end(p, false)
				}
			}
		}
		w.claim(true)
		w.let(time.Second)
		w.check()
	}
	for _, j := range w.gitlab.jobs {
		p := w.begins[j.id]
		if j.status == runnerapi.StateSuccess && !j.forgotten && !bytes.Equal(j.trace, content(p.ref, p.length())) {
			w.fail("a successful job's trace is not whole", "job %d: %d bytes in GitLab, %d were written", j.id, len(j.trace), p.length())
		}
	}
	w.stopPlane(false)
	db, err := sqlite.Open(context.Background(), filepath.Join(w.dir, "store.db"), sealing.NewKey([32]byte{1}))
	w.must(err)
	defer db.Close()
	rows, err := db.LoadJobs(context.Background())
	w.must(err)
	if len(rows) > 0 {
		w.fail("rows are left", "%+v", rows)
	}
	spooled, err := os.ReadDir(filepath.Join(w.dir, "spool"))
	w.must(err)
	for _, f := range spooled {
		if strings.Contains(f.Name(), "trace") {
			w.fail("traces are left in the spool", "%s", f.Name())
		}
	}
}

func (w *world) over() bool { return w.left() == "" }

// left is what is still to be done, for people; empty if nothing is.
func (w *world) left() string {
	var b strings.Builder
	w.gitlab.mu.Lock()
	for _, j := range w.gitlab.jobs {
		if !j.over() {
			fmt.Fprintf(&b, "GitLab has job %d as %s; ", j.id, j.status)
		}
	}
	w.gitlab.mu.Unlock()
	if w.plane == nil {
		return b.String() + "the control plane is down"
	}
	for _, j := range w.plane.d.Jobs() {
		fmt.Fprintf(&b, "the control plane has job %d of GitLab as %s, epoch %d on %s; ", j.GitLabJobID, j.State, j.Epoch, j.Agent)
	}
	for _, s := range w.plane.d.Agents() {
		if s.UsedSlots > 0 {
			fmt.Fprintf(&b, "%s has %d slots in use; ", s.Name, s.UsedSlots)
		}
	}
	for _, a := range w.agents {
		if n := len(a.disk); n > 0 {
			fmt.Fprintf(&b, "%s holds %d jobs; ", a, n)
		}
	}
	return b.String()
}
