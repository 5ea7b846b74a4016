package supervisor

import (
	"context"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
)

// Attach serves existing namespaces until their process ends, their path no
// longer leads to them, or a signal asks it to end; or a TAP until it is gone, or a
// virtual machine until it closes its connection. It must be called on the main thread
// by the main goroutine.
func Attach(_ context.Context, cfg AttachConfig) (exitCode int, err error) {
	switch {
	case cfg.TAP != nil:
		defer cfg.TAP.Close() // unless the endpoint has been made of it
		cfg.Configure = false // that takes the network namespace
	case cfg.Guest != nil:
		defer cfg.Guest.Close()
		cfg.Configure = false
	}
	if err := prepare(&cfg.Config); err != nil {
		return ExitFailed, err
	}
	target, err := openTarget(&cfg)
	if err != nil {
		return ExitFailed, err
	}
	s, err := open(&cfg.Config, NetEngine)
	if err != nil {
		if target != nil {
			target.Close()
		}
		return ExitFailed, err
	}
	end, err := s.join(&cfg, target)
	if err == nil {
		err = s.run()
	}
	if err != nil {
		s.exitCode = ExitFailed
	}
	end()
	return s.exitCode, errors.Join(err, s.close())
}

// openTarget opens the namespaces; nil without an error if there are none to enter.
func openTarget(cfg *AttachConfig) (*join.Target, error) {
	if cfg.TAP != nil || cfg.Guest != nil {
		return nil, nil
	}
	if cfg.NetNS != "" {
		return join.OpenPaths(cfg.NetNS, cfg.UserNS)
	}
	return join.OpenPID(cfg.PID)
}

// join connects the network and starts to wait for the target's end. The
// function that it returns ends the waiting, also after an error.
func (s *session) join(cfg *AttachConfig, target *join.Target) (end func(), err error) {
	end = func() {}
	s.describeAttach(cfg)
	switch {
	case cfg.Guest != nil:
		// It may take as long as it likes to connect; whoever asks us to end meanwhile,
		// or publishes ports, is heard.
		s.guest = cfg.Guest.start(s.log)
		return end, s.watch()
	case cfg.TAP != nil:
		if err := s.connectBy(nil, handedOver(cfg.TAP, s.cfg)); err != nil {
			return end, err
		}
		return end, s.watch() // the engine tells when it is gone
	}
	if err := s.connect(target); err != nil {
		return end, err
	}
	if s.gone, end, err = awaitEnd(cfg, target); err != nil {
		return func() {}, err
	}
	return end, s.watch()
}

// describeAttach fills in what the world may know.
func (s *session) describeAttach(cfg *AttachConfig) {
	command := cfg.Command
	switch {
	case command != nil:
	case cfg.TAP != nil:
		command = []string{"attach", cfg.TAP.Name()}
	case cfg.Guest != nil:
		command = []string{"attach", cfg.Guest.path}
	case cfg.NetNS != "":
		command = []string{"attach", "--netns", cfg.NetNS}
	default:
		command = []string{"attach", strconv.Itoa(cfg.PID)}
	}
	s.describe(command)
	if cfg.PID != 0 {
		_ = s.info.SetChild(cfg.PID) // it may have ended, which the pidfd tells
	}
}

// awaitEnd returns a channel that is closed at the target's end.
func awaitEnd(cfg *AttachConfig, target *join.Target) (gone <-chan struct{}, end func(), err error) {
	f := target.PIDFD()
	if f == nil {
		f = cfg.Life
	}
	if f != nil {
		w, err := waitFD(f, unix.POLLIN) // readable when the process has ended
		if err != nil {
			return nil, nil, err
		}
		return w.C(), w.close, nil
	}
	w, err := watchPath(cfg.NetNS, pathEvery)
	if err != nil {
		return nil, nil, err
	}
	return w.gone, w.close, nil
}
