package ocihook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The events that a hook is called for.
const (
	CreateRuntime   = "createRuntime"
	CreateContainer = "createContainer"
	Poststop        = "poststop"
)

// ReadState reads the container's state as the runtime writes it and checks that it
// fits the event. The error says what is wrong with it.
func ReadState(r io.Reader, event string) (specs.State, error) {
	text, err := readAll(r)
	if err != nil {
		return specs.State{}, fmt.Errorf("read the container's state from standard input: %w (a runtime calls this; it is not for the command line)", err)
	}
	s, err := ParseState(text)
	if err == nil {
		err = check(s, event)
	}
	if err != nil {
		return specs.State{}, fmt.Errorf("%s hook: the container's state: %w", event, err)
	}
	return s, nil
}

// readAll reads what the runtime writes, but no more than it may and no longer than
// it should take. If it never ends, the reading goroutine ends with the process.
func readAll(r io.Reader) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(io.LimitReader(r, maxState+1))
		done <- result{text, err}
	}()
	select {
	case got := <-done:
		if got.err == nil && len(got.text) > maxState {
			got.err = fmt.Errorf("longer than %d bytes", maxState)
		}
		return got.text, got.err
	case <-time.After(stateWithin):
		return nil, fmt.Errorf("no end of it after %v", stateWithin)
	}
}

// ParseState reads one JSON object and nothing after it. A member that stands twice,
// in whatever case, is refused, because nobody can say which counts.
func ParseState(text []byte) (s specs.State, err error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return s, errors.New("it is empty")
	}
	if err := singleMembers(text); err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return specs.State{}, fmt.Errorf("parse JSON: %w", err)
	}
	return s, nil
}

func singleMembers(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("parse JSON: want an object")
	}
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("parse JSON: %w", err)
		}
		key, _ := t.(string)
		if key = strings.ToLower(key); seen[key] {
			return fmt.Errorf("parse JSON: member %.64q stands twice", key)
		}
		seen[key] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return fmt.Errorf("parse JSON: member %.64q: %w", key, err)
		}
	}
	return nil
}

// Bounds of what a runtime says. Ids become file names in its own state directory
// (NAME_MAX), paths are paths (PATH_MAX), pids are the kernel's (PID_MAX_LIMIT).
const (
	maxID   = 255
	maxPath = 4095
	maxPID  = 1 << 22
)

func check(s specs.State, event string) error {
	if err := checkID(s.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(s.Bundle) || len(s.Bundle) > maxPath || strings.ContainsRune(s.Bundle, 0) {
		return fmt.Errorf("bundle %.64q: want an absolute path", s.Bundle)
	}
	if event != CreateRuntime {
		return nil // the process is gone, or its number another pid namespace's
	}
	if s.Pid < 1 || s.Pid > maxPID {
		return fmt.Errorf("pid %d: want the container's process", s.Pid)
	}
	if s.Status != specs.StateCreating && s.Status != specs.StateCreated {
		return fmt.Errorf("status %.64q: want creating or created", s.Status)
	}
	return nil
}

// checkID holds the rule of runc and crun.
func checkID(id string) error {
	ok := id != "" && len(id) <= maxID && id != "." && id != ".."
	for _, c := range []byte(id) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_+-.", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("id %.64q: want 1 to %d letters, digits and the signs _ + - and dot", id, maxID)
	}
	return nil
}
