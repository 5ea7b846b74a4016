package inspect

// The bounds of one look. A user may start some ten thousand processes; a machine
// with more than these is shown in part, and the report says so.
const (
	maxProcesses  = 8192
	maxNamespaces = 512     // of a kind, each one open descriptor
	maxFDs        = 4096    // looked at in one process
	maxAllFDs     = 1 << 18 // looked at together; each is one system call
	maxMounts     = 4096    // lines of one mountinfo
	maxLinks      = 1024    // interfaces of one network
	maxAddresses  = 4096    // addresses of one network
	maxCommand    = 4096    // bytes of a command line
	maxFile       = 1 << 20 // bytes of a state file; runc's have some 50,000
	maxContainers = 1024    // entries of one state directory
	maxMapLines   = 340     // user_namespaces(7)
)
