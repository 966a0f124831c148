package fleettest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/switchyard-ci/switchyard/internal/faults"
)

// chaosPlan draws everything that a chaos run decides from its seed. What step n does depends on the seed and n alone, not
// on what happened before or when.
type chaosPlan struct{ seed uint64 }

// The streams of numbers that are drawn from one seed.
const (
	drawJobs = iota + 1
	drawSteps
	drawChances
)

func (p chaosPlan) rand(stream, n int) *rand.Rand {
	return rand.New(rand.NewPCG(p.seed, uint64(stream)<<48|uint64(n)))
}

// jobs are those of pipeline n.
func (p chaosPlan) jobs(n, count int) []wantedJob {
	r := p.rand(drawJobs, n)
	jobs := make([]wantedJob, count)
	for i := range jobs {
		jobs[i] = drawJob(r)
	}
	return jobs
}

func drawJob(r *rand.Rand) wantedJob {
	switch x := r.IntN(1000); {
	case x < 120:
		exit := 1 + r.IntN(255)
		return wantedJob{script: fmt.Sprintf("echo \"failing $CI_JOB_ID\"; exit %d", exit), output: "failing $CI_JOB_ID\n", exit: exit}
	case x < 140:
		return wantedJob{script: "echo \"again $CI_JOB_ID\"; exit 3", output: "again $CI_JOB_ID\n", exit: 3, retry: retryOnce}
	case x < 180:
		return wantedJob{script: `echo "once $CI_JOB_ID"`, output: "once $CI_JOB_ID\n", retry: retryNever}
	case x < 240:
		return wantedJob{script: `printf 'job %s \377\376\200 caf\303\n' $CI_JOB_ID`, output: "job $CI_JOB_ID \xff\xfe\x80 caf\xc3\n"}
	case x < 300:
		return wantedJob{script: `printf '%0102400d%s\n' 0 $CI_JOB_ID`, output: strings.Repeat("0", 102400) + "$CI_JOB_ID\n"}
	case x < 420:
		var out strings.Builder
		for i := range 60 {
			fmt.Fprintf(&out, "line %d of $CI_JOB_ID\n", i)
		}
		return wantedJob{script: `for ((i = 0; i < 60; i++)); do echo "line $i of $CI_JOB_ID"; done`, output: out.String()}
	case x < 430:
		return wantedJob{
			script: fmt.Sprintf("echo first; sleep %d.%d; echo \"second $CI_JOB_ID\"", 1+r.IntN(4), r.IntN(10)),
			output: "first\nsecond $CI_JOB_ID\n",
		}
	default:
		return wantedJob{script: `echo "job $CI_JOB_ID"`, output: "job $CI_JOB_ID\n"}
	}
}

// What a step does.
type chaosAction string

const (
	killPlane   chaosAction = "kill the control plane"
	stopPlane   chaosAction = "stop the control plane"
	killAgent   chaosAction = "kill agent"
	stopAgent   chaosAction = "stop agent"
	cutNetwork  chaosAction = "cut the network of agent"
	resetAgent  chaosAction = "reset the connections of agent"
	refuseAgent chaosAction = "refuse the connections of agent"
	slowNetwork chaosAction = "slow down the network of agent"
	breakGitLab chaosAction = "break GitLab"
	healGitLab  chaosAction = "heal GitLab"
)

var chaosWeights = []struct {
	weight int
	action chaosAction
}{
	{12, killPlane},
	{4, stopPlane},
	{24, killAgent},
	{5, stopAgent},
	{16, cutNetwork},
	{8, resetAgent},
	{5, refuseAgent},
	{4, slowNetwork},
	{18, breakGitLab},
	{4, healGitLab},
}

// chaosStep is one decision.
type chaosStep struct {
	number    int
	after     int // that many jobs have finished since the step before
	action    chaosAction
	agent     int // index
	gitlab    int // index
	direction faults.Direction
	pause     time.Duration // until what was ended comes back, or what was cut is healed
	delay     time.Duration
	rules     []faults.Rule
	says      string // the rules, for people
}

func (p chaosPlan) step(n, agents, gitlabs int) chaosStep {
	r := p.rand(drawSteps, n)
	s := chaosStep{
		number: n, after: 5 + r.IntN(41), agent: r.IntN(agents), gitlab: r.IntN(gitlabs),
		direction: []faults.Direction{faults.Both, faults.ToPlane, faults.ToAgents}[r.IntN(3)],
		pause:     time.Duration(r.IntN(3000)) * time.Millisecond,
		delay:     time.Duration(1+r.IntN(30)) * time.Millisecond,
	}
	if r.IntN(2) == 0 {
		s.pause = 0
	}
	x := 0
	for _, w := range chaosWeights {
		x += w.weight
	}
	x = r.IntN(x)
	for _, w := range chaosWeights {
		if x -= w.weight; x < 0 {
			s.action = w.action
			break
		}
	}
	if s.action == cutNetwork && s.pause < time.Second {
		s.pause += time.Second // else nobody would notice
	}
	if s.action == breakGitLab {
		s.rules, s.says = p.rules(n, r)
	}
	return s
}

func (s chaosStep) String() string {
	switch s.action {
	case killPlane, stopPlane:
		return fmt.Sprintf("step %d: %s, back after %s", s.number, s.action, s.pause)
	case breakGitLab, healGitLab:
		return fmt.Sprintf("step %d: %s %d %s", s.number, s.action, s.gitlab, s.says)
	case cutNetwork:
		return fmt.Sprintf("step %d: %s %d (direction %d) for %s", s.number, s.action, s.agent, s.direction, s.pause)
	default:
		return fmt.Sprintf("step %d: %s %d, pause %s, delay %s", s.number, s.action, s.agent, s.pause, s.delay)
	}
}

// rules are one to three ways in which a GitLab fails until the next step that says something about it.
func (p chaosPlan) rules(step int, r *rand.Rand) ([]faults.Rule, string) {
	matches := []struct {
		name string
		is   func(*http.Request) bool
	}{{"claims", isClaim}, {"updates", isUpdate}, {"updates", isUpdate}, {"traces", isTrace}, {"all", isAny}}
	var rules []faults.Rule
	var says []string
	for i := range 1 + r.IntN(3) {
		match := matches[r.IntN(len(matches))]
		rule := faults.Rule{Match: match.is, Fault: drawFault(r)}
		percent := 100
		if r.IntN(5) == 0 { // nothing gets through for a while
			rule.Times = 5 + r.IntN(20)
		} else {
			percent = 1 + r.IntN(25)
			rule.Chance = p.chance(step*8+i, percent)
		}
		if rule.Fault.Kind == faults.Hang {
			rule.Times = 1 + r.IntN(5)
		}
		rules = append(rules, rule)
		says = append(says, fmt.Sprintf("%s: %s %d after=%t wait=%s rate=%d, %d%% times=%d", match.name, rule.Fault.Kind, rule.Fault.Code,
			rule.Fault.AfterEffect, rule.Fault.Wait, rule.Fault.BytesPerSecond, percent, rule.Times))
	}
	return rules, strings.Join(says, "; ")
}

// chance says whether the n-th request that a rule could have is hit.
func (p chaosPlan) chance(rule, percent int) func() bool {
	var n atomic.Int64
	return func() bool {
		return p.rand(drawChances, rule<<24|int(n.Add(1))).IntN(100) < percent
	}
}

func drawFault(r *rand.Rand) faults.Fault {
	f := faults.Fault{AfterEffect: r.IntN(2) == 0}
	switch r.IntN(8) {
	case 0:
		f.Kind, f.Code = faults.Status, []int{500, 502, 503, 504}[r.IntN(4)]
	case 1:
		f.Kind, f.Code, f.AfterEffect = faults.Status, http.StatusTooManyRequests, false
		if r.IntN(2) == 0 {
			f.Header = http.Header{"Retry-After": {"1"}}
		} else {
			f.Header = http.Header{"Ratelimit-Resettime": {time.Now().Add(time.Second).UTC().Format(http.TimeFormat)}}
		}
	case 2:
		f.Kind, f.Code = faults.HTML, []int{200, 502}[r.IntN(2)]
	case 3, 4:
		f.Kind = faults.Reset
	case 5:
		f.Kind, f.AfterEffect = faults.Truncate, true
	case 6:
		f.Kind, f.Wait = faults.Delay, time.Duration(10+r.IntN(1500))*time.Millisecond
		if r.IntN(2) == 0 {
			f.Kind, f.BytesPerSecond = faults.Slow, 4000+r.IntN(50000)
		}
	case 7:
		f.Kind, f.Wait = faults.Hang, time.Duration(500+r.IntN(3000))*time.Millisecond
	}
	return f
}
