package relay

const sinkVariable = "SWITCHYARD_RELAY_SINK"

func serveSink(string) {}
