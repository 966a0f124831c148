package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

// What a pipeline calls its jobs stays in its cell and gives the operator's terminal no orders.
func TestNamesOfJobsDoNothingToTheTerminal(t *testing.T) {
	const name = "a\x1b[31mred\x1b]0;title\x07\n\tb\u009b2J"
	var out bytes.Buffer
	jobs := []*adminv1.Job{{JobName: name, Agent: "agent"}}
	require.NoError(t, printList(outputFlag{Output: "table"}, &out, jobs, "NAME\tAGENT", func(j *adminv1.Job) []string {
		return []string{j.GetJobName(), j.GetAgent()}
	}))
	printExplanation(&out, &adminv1.ExplainResponse{Sentence: "Job " + name + " waits.", Notes: []string{name}})
	require.NotContains(t, out.String(), "\x1b")
	require.NotContains(t, out.String(), "\x07")
	require.NotContains(t, out.String(), "\u009b")
	require.Len(t, bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n")), 4, out.String())
	require.Regexp(t, `(?m)^ared\S* +b\S* +agent$`, out.String())
}
