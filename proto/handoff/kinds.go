package handoff

// messages makes an empty message of each kind.
var messages = []func() Message{
	func() Message { return new(AgentSetup) },
	func() Message { return new(AgentNetNS) },
	func() Message { return new(AgentReady) },
	func() Message { return new(AgentFailed) },
	func() Message { return new(AgentStart) },
	func() Message { return new(AgentStarted) },
	func() Message { return new(AgentSignal) },
	func() Message { return new(AgentStopped) },
	func() Message { return new(AgentContinue) },
	func() Message { return new(AgentExited) },
	func() Message { return new(AgentKill) },
	func() Message { return new(EngineConfig) },
	func() Message { return new(EngineReady) },
	func() Message { return new(EngineFailed) },
	func() Message { return new(EngineResolvers) },
	func() Message { return new(EngineSnapshotRequest) },
	func() Message { return new(EngineSnapshot) },
	func() Message { return new(EngineExpressLost) },
	func() Message { return new(EnginePorts) },
	func() Message { return new(EnginePortsAnswer) },
	func() Message { return new(EngineShut) },
	func() Message { return new(EngineStock) },
	func() Message { return new(EngineOrder) },
	func() Message { return new(EngineDial) },
	func() Message { return new(EngineDialed) },
}

// blank returns an empty message of a kind, or nil if there is none such. The
// list is short and messages are rare, so it is searched rather than indexed.
func blank(kind string) Message {
	for _, make := range messages {
		if m := make(); m.kind() == kind {
			return m
		}
	}
	return nil
}
