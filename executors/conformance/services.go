//go:build unix

package conformance

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// services are there by their aliases when the script begins, with variables of their own, and gone after the job.
func services(t *testing.T, p *place) {
	require.Equal(t, p.Greeter != nil, p.Executor.Features().Runner.Services, "GitLab is told whether there are services")
	if p.Greeter == nil {
		return
	}
	const ask = `exec 3<>/dev/tcp/$HOST/8080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`
	job := script("HOST=db; "+ask, "HOST=other; "+ask)
	job.Services = []runnerapi.Image{{
		Name: p.Greeter(t), Alias: "db, other", Variables: []runnerapi.Variable{{Key: "GREETING", Value: "$CI_PROJECT_PATH"}},
	}}
	r := p.start(job, with(runnerapi.Variable{Key: "CI_PROJECT_PATH", Value: "group/project", Public: true}))
	r.wait()
	succeeded(t, r.result(), r.text())
	require.Regexp(t, `(?s)HOST=db.*hello group/project\n.*HOST=other.*hello group/project\n`, r.text())
	require.NoError(t, r.env.Destroy(t.Context()))
	require.Empty(t, p.Leftovers(t))
}
