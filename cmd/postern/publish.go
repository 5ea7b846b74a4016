package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/postern-net/postern/cmd/postern/internal/supervisor"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/auto"
)

// portFlags are the flags about published ports, as given.
type portFlags struct {
	specs  []string
	auto   string
	driver string
}

// autoAll is the value of --publish-auto without exclusions.
const autoAll = "all"

func (f *portFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.specs, "publish", "p", nil,
		"publish a port: `SPEC` is [HOSTIP:][HOSTPORT]:[CTRIP:]CTRPORT[/PROTO], ranges A-B:C-D (repeatable)")
	fs.StringVar(&f.auto, "publish-auto", "", "publish on the host's loopback what the container listens on, all or `EXCEPT` some (~22,~5000-6000)")
	fs.Lookup("publish-auto").NoOptDefVal = autoAll
	fs.StringVar(&f.driver, "port-driver", string(supervisor.PortDriverAuto), "`DRIVER` of published TCP ports: auto, splice, netstack or none")
}

// parse checks the flags; they are the last, since they may need others.
func (f *portFlags) parse(cfg *supervisor.Config) error {
	switch d := supervisor.PortDriver(f.driver); d {
	case supervisor.PortDriverAuto, supervisor.PortDriverSplice, supervisor.PortDriverNetstack, supervisor.PortDriverNone:
		cfg.PortDriver = d
	default:
		return fmt.Errorf("--port-driver %q: want auto, splice, netstack or none", f.driver)
	}
	for _, text := range f.specs {
		spec, err := portdriver.ParseSpec(text)
		if err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
		cfg.Publish = append(cfg.Publish, spec)
	}
	if err := f.parseAuto(cfg); err != nil {
		return err
	}
	return cfg.CheckPorts()
}

func (f *portFlags) parseAuto(cfg *supervisor.Config) (err error) {
	switch f.auto {
	case "", "false", "no":
		return nil
	case autoAll, "true", "yes":
	default:
		if cfg.AutoExcept, err = auto.ParseExclusions(f.auto); err != nil {
			return fmt.Errorf("--publish-auto: %w", err)
		}
	}
	cfg.PublishAuto = true
	return nil
}
