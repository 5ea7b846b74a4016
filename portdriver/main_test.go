package portdriver

import (
	"os"
	"testing"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
