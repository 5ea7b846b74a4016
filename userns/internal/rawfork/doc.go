// Package rawfork runs a prepared list of system calls in a forked child.
//
// A Go process has many threads, and the kernel lets only a single-threaded one
// join a user namespace (setns(2)); it also cannot run Go code after a fork,
// because the other threads are gone and with them whoever held a lock. What is
// left is a child that makes system calls and nothing else. This package is that
// child, once, for all who need one:
//
//	Script   the calls, with every byte they touch prepared beforehand
//	Fork     clone, then the child interprets the script and ends
//	Child    the parent's view: what the child reported, which descriptors it sent
//	Process  a child that went on to execve another program
//
// # The child
//
// Between fork and execve or exit_group the child may not allocate, grow its
// stack, take a lock, or return: the runtime that would do it is dead. The
// interpreter is one function without calls except RawSyscall6 and the runtime's
// own hook (the same that syscall.forkExec uses). The runtime poisons the stack
// guard meanwhile, so a mistake here is a crash and not a rare hang.
//
// The child has a copy of our memory and of all our descriptors until it executes
// something. Where it joins a namespace whose inhabitants we do not trust, the
// script makes it undumpable first, so that they cannot trace it.
//
// # The control socket
//
// One SOCK_SEQPACKET pair connects parent and child for the time of the script.
// Parent to child: one byte, "go on". Child to parent: one byte with descriptors
// (SCM_RIGHTS), or eight bytes, the step that failed and its errno. Its end, seen
// by the parent, is success: execve closed the child's side, or the script came
// to its end. Seen by the child, it is the parent's death.
//
// System calls are numbers here, so the architecture matters: 64-bit Linux, whose
// setresuid(2) takes whole ids.
//
// # Threads
//
// PR_SET_PDEATHSIG fires when the forking *thread* ends (prctl(2)). A fork is
// therefore made on a thread that lives as long as the child: a goroutine of the
// Child's, locked to it, ended by Release. It follows that what a caller's locked
// thread changed for itself alone (unshare, setns) does not reach the child.
package rawfork
