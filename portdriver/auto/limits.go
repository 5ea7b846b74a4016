package auto

import "time"

const (
	// MaxRules is how many rules a Follower has at most, the lowest ports first.
	// Each holds two sockets of ours, and the container can listen on more ports than
	// that in no time.
	MaxRules = 512

	// MaxExclusions is how many exclusions one list may have.
	MaxExclusions = 1024

	// firstRetry is the pause before a rule that failed is tried again. Each further
	// pause is twice as long, up to lastRetry.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second

	// firstEphemeral and lastEphemeral are net.ipv4.ip_local_port_range as a network
	// namespace has it at first (ip(7)).
	firstEphemeral = 32768
	lastEphemeral  = 60999
)
