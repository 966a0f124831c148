//go:build !linux

package main

type jobProcess struct{}

func (jobProcess) kill() error { return nil }

// jobProcesses finds nothing: only Linux shows other processes' environments.
func jobProcesses(string) ([]jobProcess, error) { return nil, nil }
