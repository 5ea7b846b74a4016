package portdriver

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver/activation"
	"github.com/postern-net/postern/portdriver/internal/bind"
)

// Backend is the engine as the Registry sees it. Its methods are called without
// locks held, at the same time for different rules. They may take their time, but
// must return when the engine is gone.
type Backend interface {
	// Open has a rule served and returns when it is. The Backend may keep the rule
	// and hand it to another engine until Shut: its Files stay open as long. They
	// must not be closed, read from or accepted on.
	Open(Rule) error
	// Shut ends the service of a rule, also of one whose Open has failed. The
	// listeners have ended before, all but those of UDP.
	Shut(rule int)
}

// Config is what a Registry needs. It must not be changed afterwards.
type Config struct {
	// Backend serves the rules; nil if nobody does.
	Backend Backend
	// Inherited are listeners that rules may use instead of binding. The Registry
	// takes them over.
	Inherited []activation.Inherited
	// V4 and V6 say which families the container has. Neither means both.
	V4, V6 bool
	// ContainerListener listens in the container, for reverse rules. The Side has
	// either an address, which may be the unspecified one, and a port, or a path;
	// a socket's file that was left there has to give way. nil: reverse rules are
	// refused.
	ContainerListener func(Side) (*os.File, error)
	// Logger gets the life of rules; nil is silence.
	Logger *slog.Logger
}

// Registry owns the rules of an instance: it knows which can be in force together,
// binds their sockets and keeps them until they are removed. It is safe for
// concurrent use.
//
// Adding has three steps. Under the lock the rule reserves what it claims, so that
// of two that want the same only one goes on. Without the lock it binds and is
// handed to the Backend. Under the lock it becomes visible. A step that fails undoes
// those before. Removing keeps the claim until the Backend has let go.
type Registry struct {
	cfg Config
	log *slog.Logger

	work  sync.WaitGroup // what is under way without the lock
	ended sync.Once

	mu        sync.Mutex // guards the fields below and those of entries
	closed    bool
	last      int // the ID given last
	entries   map[int]*entry
	listeners int // of all entries
	inherited []*inherited
	// leaving are the UDP sockets of rules that have ended of which the engine may
	// still have copies, and until when.
	leaving map[netip.AddrPort]time.Time
}

// state is where an entry is in its life. An entry that is not open belongs to the
// call that opens or closes it.
type state uint8

const (
	opening state = iota
	open
	closing
)

// entry is a rule and what it holds.
type entry struct {
	state  state
	rule   Rule
	claims []claim
	// listeners is how many are counted for it.
	listeners int
	// using are the inherited listeners that it has, for each of its addresses.
	using map[netip.AddrPort]*inherited
	// named are those that its spec names.
	named []*inherited
	// owned are the files to close at the end, path the one to remove. Of them had is
	// bound to hadAt, a free port, before the others.
	owned []*os.File
	had   *os.File
	hadAt netip.AddrPort
	path  *bind.Path
	// handed says that the Backend has heard of it.
	handed bool
}

// New makes a Registry without rules.
func New(cfg Config) *Registry {
	r := &Registry{cfg: cfg, log: cfg.Logger, entries: make(map[int]*entry), leaving: make(map[netip.AddrPort]time.Time)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.cfg.Backend == nil {
		r.cfg.Backend = nobody{}
	}
	if !cfg.V4 && !cfg.V6 {
		r.cfg.V4, r.cfg.V6 = true, true
	}
	for _, in := range cfg.Inherited {
		r.inherited = append(r.inherited, &inherited{Inherited: in})
	}
	return r
}

// nobody is the Backend of a Registry without one.
type nobody struct{}

func (nobody) Open(Rule) error { return nil }
func (nobody) Shut(int)        {}

// Rules returns the rules in force, by ID. Their Files are the Registry's.
func (r *Registry) Rules() []Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	var rules []Rule
	for _, e := range r.entries {
		if e.state == open {
			rules = append(rules, e.rule.clone())
		}
	}
	slices.SortFunc(rules, func(a, b Rule) int { return cmp.Compare(a.ID, b.ID) })
	return rules
}

// Get returns a rule in force, or ErrNotFound.
func (r *Registry) Get(id int) (Rule, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[id]; e != nil && e.state == open {
		return e.rule.clone(), nil
	}
	return Rule{}, fmt.Errorf("rule %d: %w", id, ErrNotFound)
}

// clone is r with its own list of listeners.
func (r Rule) clone() Rule {
	r.Listeners = slices.Clone(r.Listeners)
	return r
}

// Remove ends a rule: its listeners end at once, and its ports can be had again when
// Remove returns. Connections that exist go on.
func (r *Registry) Remove(id int) error {
	if err := r.begin(); err != nil {
		return fmt.Errorf("remove rule %d: %w", id, err)
	}
	defer r.work.Done()
	e, err := r.take(id)
	if err != nil {
		return err
	}
	r.end([]*entry{e})
	r.log.Debug("port removed", "id", id, "rule", e.rule.String())
	return nil
}

// take makes an open entry the caller's to close.
func (r *Registry) take(id int) (*entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[id]
	if e == nil || e.state != open {
		return nil, fmt.Errorf("remove rule %d: %w", id, ErrNotFound)
	}
	e.state = closing
	return e, nil
}

// release gives up what entries have reserved.
func (r *Registry) release(entries ...*entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		for _, in := range r.inherited {
			if in.user == e {
				in.user = nil
			}
		}
		r.listeners -= e.listeners
		delete(r.entries, e.rule.ID)
	}
}

// begin starts a piece of work that Close waits for.
func (r *Registry) begin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.work.Add(1)
	return nil
}

// Close ends every listener and removes the unix sockets that rules have made. It
// waits for calls that are under way. The Backend is not told.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.work.Wait()
	r.ended.Do(func() {
		entries := slices.Collect(maps.Values(r.entries)) // nobody changes them any more
		for _, e := range entries {
			e.handed = false // the Backend ends too
		}
		r.end(entries)
		activation.Close(r.cfg.Inherited)
	})
}

// shut ends the listeners in every process.
func (e *entry) shut() {
	for _, f := range e.owned {
		bind.Shut(f)
	}
}

// close closes the files and removes the path.
func (e *entry) close() (err error) {
	if e.path != nil {
		err = e.path.Remove() // while it is ours for certain
	}
	for _, f := range e.owned {
		f.Close()
	}
	e.owned, e.had, e.path = nil, nil, nil
	return err
}
