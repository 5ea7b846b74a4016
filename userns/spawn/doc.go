// Package spawn creates the namespaces of a new instance: a user and a mount
// namespace, a network namespace unless the host's shall do, others on request,
// with a program as their first inhabitant.
//
// # The order of things
//
//	parent                          child (raw system calls only, see rawfork)
//	clone(NEWUSER|NEWNET|NEWNS…) ─▶ waits
//	writes uid_map and gid_map
//	"go on" ─────────────────────▶ setresgid 0, setresuid 0
//	                                execve of the program, as root in there
//
// The program needs no second stage: id 0 is mapped, so execve keeps every
// capability in the new user namespace (capabilities(7)).
//
// # Id maps
//
// PlanMaps decides from facts that it gathers once. All of a user's subordinate
// ids are mapped, through the setuid programs newuidmap and newgidmap, because
// only they may write a map of more than one's own id (user_namespaces(7)). Where
// that cannot work, the single-id map takes its place, and one line says why and
// what would help. Root writes its maps itself.
//
// setgroups(2) stays allowed where newgidmap or a privileged parent wrote the map;
// with the single-id map the kernel demands that it be denied first.
//
// # The right process
//
// Maps are written through the child's /proc directory, opened once and found to
// be procfs; newuidmap gets the child's number. The child is ours and not waited
// for, so the number stays its own; its pidfd is asked before and after, in case
// that somebody made the kernel wait for our children (SIGCHLD ignored). A child
// that is killed meanwhile is an error, never another process's map.
//
// # Ends
//
// The child asks for a signal at its parent's end before it waits, and again
// after its ids changed, which takes the first request back; then it looks whether
// the parent still lives.
package spawn
