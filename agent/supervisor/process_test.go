package supervisor_test

func agentProcess(string) int { return 0 }

const beAnAgent = "SWITCHYARD_SUPERVISOR_TEST"
