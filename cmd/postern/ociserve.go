package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/cmd/postern/internal/hostconf"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
	"github.com/postern-net/postern/cmd/postern/internal/ocihook"
	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/portdriver"
)

// ociServe is a container's server: attach, with what a bundle needs besides.
type ociServe struct {
	shared    networkFlags
	files     string
	hostIP    string
	wait      bool
	container ocihook.Container
	cfg       supervisor.AttachConfig
}

func (a *app) ociServeCommand() *cobra.Command {
	var f ociServe
	cmd := &cobra.Command{
		Use:    "serve ID BUNDLE PID",
		Short:  "What the hook starts",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			// It is looked at closely, because the Go runtime may have taken the number.
			var st unix.Stat_t
			if err := unix.Fstat(ocihook.ReadyFD, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
				return fmt.Errorf("descriptor %d is not a pipe: only postern oci hook starts this", ocihook.ReadyFD)
			}
			nameProcess("postern") // executed through /proc/self/exe, as roles are
			ready := os.NewFile(ocihook.ReadyFD, "report")
			err := f.parse(a, args)
			if err != nil {
				report(ready, err)
			} else {
				err = f.serve(cmd.Context(), a, ready)
			}
			if err != nil {
				a.failed(exitFailed, err)
			}
			return nil
		},
	}
	fs := cmd.Flags()
	f.shared.register(fs)
	fs.StringVar(&f.files, "files", "", "`DIR` of the container's resolv.conf and hosts")
	fs.StringVar(&f.hostIP, "host-ip", "", "host `ADDR` of published ports that name none")
	fs.BoolVar(&f.wait, "wait", false, "wait for the namespaces from the createContainer hook")
	return cmd
}

func (f *ociServe) parse(a *app, args []string) (err error) {
	if f.cfg.PID, err = attachTarget(args[2:], "", ""); err != nil {
		return err
	}
	if err := parseHostIP(f.hostIP); err != nil {
		return err
	}
	if f.cfg.Config, err = f.shared.parse(a); err != nil {
		return err
	}
	root, err := instance.Places{RuntimeDir: f.cfg.RuntimeDir}.Root()
	f.container = ocihook.ContainerOf(specs.State{ID: args[0], Bundle: args[1]}, root)
	f.cfg.Command = f.container.Command()
	return err
}

// serve serves the container until it ends. What goes wrong before the network is
// there is reported to the hook that waits.
func (f *ociServe) serve(ctx context.Context, a *app, ready *os.File) error {
	f.cfg.ReadyFD = ready
	defer func() { _ = f.cfg.ReadyFD.Close() }() // closed already when the network is there
	log, err := f.open(a)
	if err != nil {
		report(f.cfg.ReadyFD, err)
		return err
	}
	f.cfg.Stderr = log.File()
	n, err := f.namespaces(ready)
	if err != nil {
		ended := errors.Is(err, ocihook.ErrEnded)
		log.Close(report(f.cfg.ReadyFD, err) || ended)
		if ended {
			return nil // there is nothing to serve, and nobody to tell
		}
		return err
	}
	defer n.Close()
	files := ocihook.KeepFiles(f.files, hostconf.Path, f.cfg.Config, log.File())
	_, err = f.attach(ctx)
	told := report(f.cfg.ReadyFD, err)
	files.Close()
	log.Close(told || err == nil)
	return err
}

// open does what must be done before anything is started.
func (f *ociServe) open(a *app) (*ocihook.Journal, error) {
	if err := sealDescriptors(); err != nil {
		return nil, err
	}
	return ocihook.OpenJournal(a.err, f.container.LogPath(f.cfg.Name))
}

// namespaces finds the container's. They are what is attached to, and not the
// process: what that has for a root while the hooks run is the host's, which no
// engine may get. The pidfd is taken while the hook looks on, which knows whether
// the number is the container's.
func (f *ociServe) namespaces(ready *os.File) (n ocihook.Namespaces, err error) {
	pidfd, err := unix.PidfdOpen(f.cfg.PID, 0)
	if err != nil {
		return n, fmt.Errorf("open the container's process %d: %w", f.cfg.PID, err)
	}
	f.cfg.Life = os.NewFile(uintptr(pidfd), "pidfd") // kept until we end
	if f.wait {
		n, err = f.await(ready)
	} else {
		n, err = ocihook.NamespacesOf(f.cfg.Life, f.cfg.PID)
	}
	if err != nil {
		return n, err
	}
	f.cfg.NetNS, f.cfg.UserNS = ocihook.Path(n.Net), ocihook.Path(n.User)
	return n, nil
}

// await lets the runtime go on and waits for its next hook to bring the namespaces.
func (f *ociServe) await(ready *os.File) (n ocihook.Namespaces, err error) {
	h, err := f.container.Listen(f.files, f.cfg.Name)
	if err != nil {
		return n, err
	}
	defer h.Close()
	if _, err := ready.WriteString(ocihook.Ready); err != nil {
		return n, fmt.Errorf("report to the hook: %w", err)
	}
	_ = ready.Close()
	if n, err = h.Wait(f.cfg.Life); err == nil {
		f.cfg.ReadyFD = n.Report
	}
	return n, err
}

// attach tries the container's addresses in turn. Only binding tells whether one is
// free; that another socket has it already spares an attempt.
func (f *ociServe) attach(ctx context.Context) (exitCode int, err error) {
	if f.hostIP != ownAddress {
		addr, _ := netip.ParseAddr(f.hostIP) // checked; none is the zero Addr
		return f.attachOn(ctx, addr)
	}
	tried := 0
	for n := range ocihook.AddressTries {
		addr := f.container.OwnAddress(n)
		if ocihook.AddressTaken(addr) && n+1 < ocihook.AddressTries {
			continue
		}
		exitCode, err = f.attachOn(ctx, addr)
		if tried++; !errors.Is(err, portdriver.ErrConflict) || tried == maxAttaches {
			return exitCode, err
		}
	}
	return exitCode, err
}

// maxAttaches bounds the attempts that fail: a port that somebody has on all
// addresses is free on none.
const maxAttaches = 3

func (f *ociServe) attachOn(ctx context.Context, addr netip.Addr) (exitCode int, err error) {
	cfg := f.cfg
	if cfg.Publish, err = onAddress(cfg.Publish, addr); err != nil {
		return exitFailed, err
	}
	exitCode, err = supervisor.Attach(ctx, cfg)
	if err != nil {
		err = fmt.Errorf("serve container %s (process %s): %w", f.container.ID, strconv.Itoa(cfg.PID), err)
	}
	return exitCode, err
}
