package e2e

import (
	"fmt"
	"os"
)

// playRole is the main function of the test program as a tool inside a container.
// A role prints what it found to stdout; an error goes to stderr.
func playRole(role string, args []string) int {
	roles := map[string]func([]string) error{
		"@fetch":     fetchRole,
		"@transfer":  transferRole,
		"@udpecho":   udpEchoRole,
		"@many":      manyRole,
		"@halfclose": halfCloseRole,
		"@stubborn":  stubbornRole,
		"@dial":      dialRole,
		"@good":      goodRole,
		"@interface": interfaceRole,
		"@lookup":    lookupRole,
		"@raw":       rawRole,
		"@kernel":    kernelRole,
		"@flood":     floodRole,
		"@frames":    framesRole,
		"@cycle":     cycleRole,
		"@mounts":    mountsRole,
		"@unix":      unixRole,
		"@witness":   witnessRole,
		"@ask":       askRole,
		"@activate":  activateRole,
		"@hold":      holdRole,
		"@truth":     truthRole,
		"@vanish":    vanishRole,
		"@hole":      holeRole,
		"@giveup":    giveUpRole,
		"@nested":    nestedRole,
		"@reuse":     reuseRole,
		"@midway":    midwayRole,
		"@gaps":      gapsRole,
		"@listener":  listenerRole,
		"@snapshot":  snapshotRole,
		"@datagrams": datagramsRole,
		"@mapping":   mappingRole,
		"@crowd":     crowdRole,
		"@refusal":   refusalRole,
		"@deny":      denyRole,
		"@kit":       kitRole,
		"@cni":       cniRole,
		"@nestserve": nestedServerRole,
		"@runc":      runcRole,
	}
	play := roles[role]
	if play == nil {
		fmt.Fprintln(os.Stderr, "no such role:", role)
		return 2
	}
	if err := play(args); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		return 1
	}
	return 0
}
