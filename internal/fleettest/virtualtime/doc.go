// Package virtualtime has tests of a real control plane's dispatch and a real agent in one bubble of virtual time: what takes
// hours takes milliseconds, and moments can be compared exactly. What is not real is the network, which can be cut, GitLab,
// and what runs a job.
package virtualtime
