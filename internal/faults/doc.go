// Package faults breaks things between parts of a fleet on purpose: [GitLab] stands in front of a GitLab and loses, delays
// and spoils its answers, [Network] is the wire between agents and control plane. It is for tests: nothing of it draws
// a number or reads a clock to decide, so a test that decides by a seed can be repeated.
package faults
