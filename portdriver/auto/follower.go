package auto

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/userns/sockdiag"
)

// Registry is where a Follower has its rules: *portdriver.Registry.
type Registry interface {
	// AddAuto puts a rule in force that Rules marks as automatic.
	AddAuto(portdriver.Spec) (portdriver.Rule, error)
	// Remove ends a rule.
	Remove(id int) error
	// Rules returns the rules in force, those of others too.
	Rules() []portdriver.Rule
}

// Config is what a Follower needs.
type Config struct {
	Policy   Policy
	Registry Registry
	// Logger gets what comes and goes, and what cannot be published; nil is silence.
	Logger *slog.Logger
}

// Follower keeps a registry's automatic rules as the container's listeners are. It
// is safe for concurrent use.
type Follower struct {
	cfg   Config
	log   *slog.Logger
	wake  chan struct{} // holds one: something is different
	stop  chan struct{} // closed by Close
	ended chan struct{} // closed by run
	once  sync.Once

	mu      sync.Mutex // guards the fields below
	sockets []sockdiag.Socket
	status  Status

	// The rest is run's.
	entries map[portdriver.Spec]*entry
	excess  bool // there is more than MaxRules, and that was said
}

// Status is a Follower's state in numbers.
type Status struct {
	Published int // rules in force
	Failed    int // rules that wait for another try
	More      int // rules that there would be without MaxRules
}

// entry is a rule that is desired.
type entry struct {
	id        int           // 0: not in force
	dismissed bool          // the user has removed it
	failed    bool          // the last try failed, and that was said
	pause     time.Duration // before the next try
	due       time.Time     // of the next try
}

// New starts a Follower without listeners; Update brings them.
func New(cfg Config) *Follower {
	f := &Follower{
		cfg: cfg, log: cfg.Logger, wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan struct{}),
		entries: make(map[portdriver.Spec]*entry),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	go f.run()
	return f
}

// Update says what the container listens on now. It does not wait.
func (f *Follower) Update(sockets []sockdiag.Socket) {
	f.mu.Lock()
	f.sockets = sockets
	f.mu.Unlock()
	f.Check()
}

// Check has the Follower look at the registry's rules, because others have added or
// removed some. It does not wait.
func (f *Follower) Check() {
	select {
	case f.wake <- struct{}{}:
	default: // it is about to look anyway
	}
}

// Status returns the present numbers.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Close ends the following and waits for a change of the registry that is under way.
// The rules stay: they end with the registry.
func (f *Follower) Close() {
	f.once.Do(func() { close(f.stop) })
	<-f.ended
}

// run is the Follower's goroutine, ended by Close.
func (f *Follower) run() {
	defer close(f.ended)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if next, ok := f.nextTry(); ok {
			timer.Reset(time.Until(next))
		}
		select {
		case <-f.stop:
			return
		case <-f.wake:
		case <-timer.C:
		}
		f.reconcile()
	}
}

// nextTry is when the earliest failed rule is due.
func (f *Follower) nextTry() (next time.Time, ok bool) {
	for _, e := range f.entries {
		if e.failed && (!ok || e.due.Before(next)) {
			next, ok = e.due, true
		}
	}
	return next, ok
}

// reconcile makes the rules what they should be: first those go that nobody asks for
// any more, whose ports a new one may need.
func (f *Follower) reconcile() {
	f.mu.Lock()
	sockets := f.sockets
	f.mu.Unlock()
	rules := f.cfg.Registry.Rules()
	specs, more := f.cfg.Policy.Desired(sockets, rules)
	f.notice(rules)
	wanted := make(map[portdriver.Spec]bool, len(specs))
	for _, spec := range specs {
		wanted[spec] = true
	}
	for spec, e := range f.entries {
		if !wanted[spec] {
			f.drop(spec, e)
		}
	}
	for _, spec := range specs {
		if f.stopped() {
			return
		}
		if f.entries[spec] == nil {
			f.entries[spec] = &entry{pause: firstRetry}
		}
		f.try(spec, f.entries[spec])
	}
	f.report(more)
}

func (f *Follower) stopped() bool {
	select {
	case <-f.stop:
		return true
	default:
		return false
	}
}

// notice finds rules of ours that somebody else has removed.
func (f *Follower) notice(rules []portdriver.Rule) {
	present := make(map[int]bool, len(rules))
	for _, r := range rules {
		present[r.ID] = true
	}
	for spec, e := range f.entries {
		if e.id != 0 && !present[e.id] {
			e.id, e.dismissed = 0, true
			f.log.Info("port removed by hand: it stays so while the container listens", "rule", spec.String())
		}
	}
}

// drop ends a rule whose listener has gone.
func (f *Follower) drop(spec portdriver.Spec, e *entry) {
	delete(f.entries, spec)
	if e.id == 0 {
		return
	}
	if err := f.cfg.Registry.Remove(e.id); err != nil && !errors.Is(err, portdriver.ErrNotFound) && !errors.Is(err, portdriver.ErrClosed) {
		f.log.Warn("a port that the container no longer listens on", "rule", spec.String(), "cause", err)
	}
}

// try puts a rule in force if it is not and its time has come.
func (f *Follower) try(spec portdriver.Spec, e *entry) {
	if e.id != 0 || e.dismissed || time.Now().Before(e.due) {
		return
	}
	rule, err := f.cfg.Registry.AddAuto(spec)
	switch {
	case err == nil:
		*e = entry{id: rule.ID, pause: firstRetry}
		return
	case !e.failed && !errors.Is(err, portdriver.ErrClosed):
		f.log.Warn("a port that the container listens on is not published: trying again", "port", spec.Container.Port, "cause", err)
	}
	e.failed, e.due = true, time.Now().Add(e.pause)
	e.pause = min(2*e.pause, lastRetry)
}

// report publishes the numbers.
func (f *Follower) report(more int) {
	if more > 0 && !f.excess {
		f.log.Warn("the container listens on too many ports to publish all", "limit", MaxRules, "more", more)
	}
	f.excess = more > 0
	s := Status{More: more}
	for _, e := range f.entries {
		switch {
		case e.id != 0:
			s.Published++
		case e.failed:
			s.Failed++
		}
	}
	f.mu.Lock()
	f.status = s
	f.mu.Unlock()
}
