package allocation

import "maps"

// account is what a node has used of the slots of one domain, measured against its siblings (finish) and measuring its
// children (virtual). It is start-time fair queueing in slot-seconds; see the package's comment.
type account struct {
	running  int32
	standing int32 // in how many bands of the domain it waits
	parked   int32 // jobs below it that wait for their runner to be below its limit
	kept     keeping
	finish   int64 // slot-µs per weight that it has been charged; while it waits, its start tag
	virtual  int64 // the virtual time of its children: what newcomers among them begin with
	left     int64 // when it last began to be idle, µs
	lag      int64 // how far it was behind its siblings' virtual time then

	waitingWeight  int64 // of the children that wait
	waitingRunning int64 // leases of the children that wait
}

// keeping says how the account of a node counts on when it comes back into a ranking.
type keeping uint8

const (
	forgets keeping = iota // it has been idle
	capped                 // it waited for a runner to be below its limit
	keeps                  // it was only moved about
)

// begin makes a node one that waits.
func (a *account) begin(now, virtual int64, s *settings) {
	switch a.kept {
	case forgets:
		a.finish = a.start(now, virtual, s)
	case capped:
		a.finish = max(a.finish, virtual-s.creditCap)
	case keeps:
	}
	a.kept = forgets
}

// start is the tag with which an idle node would begin to wait now: what it was ahead or behind when it began to be idle
// is forgiven by and by, and what the others used since then earns it nothing.
func (a *account) start(now, virtual int64, s *settings) int64 {
	if a.finish <= virtual {
		credit := min(decay(max(a.lag, 0), now-a.left, s.halfLife), s.creditCap)
		return max(a.finish, virtual-credit)
	}
	if a.running > 0 {
		return a.finish
	}
	return virtual + decay(a.finish-virtual, now-a.left, s.halfLife)
}

// decay halves x once per half-life, with a straight line between, so that it is the same on every machine.
func decay(x, passed, halfLife int64) int64 {
	if passed <= 0 {
		return x
	}
	halves := passed / halfLife
	if halves >= 63 {
		return 0
	}
	x >>= halves
	half, part := x/2, passed%halfLife
	// half·part may be too much for 64 bits, thousandths are exact enough
	return x - half/1000*(part*1000/halfLife) - half%1000*(part*1000/halfLife)/1000
}

// perWeight is slot-µs as they count for a node of this weight (thousandths).
func perWeight(cost, weight int64) int64 {
	return cost/weight*1000 + cost%weight*1000/weight
}

const (
	learnedNames = 64 // how many job names of a project are told apart
	memory       = 4  // a new length counts for a quarter of what is expected next
)

// lengths is what has been learned of how long jobs last.
type lengths struct {
	mean  int64 // µs; 0: nothing yet
	names map[string]int64
}

func (l *lengths) expect(name string, firstGuess int64) int64 {
	if m, ok := l.names[name]; ok {
		return m
	}
	if l.mean > 0 {
		return l.mean
	}
	return firstGuess
}

func (l *lengths) learn(name string, length int64) {
	length = max(length, 1)
	l.mean = follow(l.mean, length)
	if name == "" {
		return
	}
	old, ok := l.names[name]
	if !ok && len(l.names) >= learnedNames {
		return
	}
	if l.names == nil {
		l.names = make(map[string]int64)
	}
	l.names[name] = follow(old, length)
}

func follow(mean, length int64) int64 {
	if mean == 0 {
		return length
	}
	return max(mean+(length-mean)/memory, 1)
}

func (l *lengths) clone() lengths {
	return lengths{mean: l.mean, names: maps.Clone(l.names)}
}
