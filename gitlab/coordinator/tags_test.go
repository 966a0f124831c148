package coordinator

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestARunnersTagsCanBeChanged(t *testing.T) {
	s := newServer(t, Options{})
	p := s.project("group/app")
	r := s.runner()
	run := s.run(p, ciconfig.Job{Tags: []string{"gpu", "linux"}})
	empty := s.request(r, nil)
	require.Equal(t, http.StatusNoContent, empty.Code)

	require.NoError(t, s.SetTags(r.ID, []string{"linux", "gpu", "linux"}))
	after := s.request(r, obj{"last_update": empty.Header().Get(runnerapi.HeaderLastUpdate)})
	require.Equal(t, http.StatusCreated, after.Code, "the change is news to the runner")
	require.Equal(t, "running", s.job(run.Jobs[0].ID).Status)
	changed, err := s.Runner(r.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"gpu", "linux"}, changed.Tags)

	require.ErrorIs(t, s.SetTags(99, nil), ErrNotFound)
	tagged := s.runnerWith(RunnerOptions{Tags: []string{"a"}})
	require.ErrorContains(t, s.SetTags(tagged.ID, nil), "can never run a job")
}
