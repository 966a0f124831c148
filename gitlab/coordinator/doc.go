// Package coordinator is an embedded GitLab: it does what GitLab does between a push and the end of a job. A commit's
// .gitlab-ci.yml becomes a pipeline, jobs become pending by GitLab's processing rules, runners fetch them over the Runner
// API (lib/api/ci/runner.rb), send their traces and results, and clone over git's smart HTTP protocol.
//
//	c, err := coordinator.New(coordinator.Options{})
//	defer c.Close()
//	project, err := c.AddProject(ctx, coordinator.ProjectOptions{Path: "group/name", RepoDir: "."})
//	runner, err := c.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
//	go http.Serve(listener, c.Handler()) // a runner is configured with runner.Token
//	c.SetURL("http://" + listener.Addr().String())
//	p, err := c.CreatePipeline(ctx, project.ID, coordinator.PipelineOptions{})
//	p, err = c.Wait(ctx, p.ID)
//
// Everything lives in memory and in one private folder, which Close removes. The repositories of projects are only read.
// All methods may be called concurrently; what they return are copies.
//
// The decisions are packages of their own that do no I/O: pipeline (state machine and processing), queue (who is offered
// which job), variables (expansion), glob (paths in rules and includes), dotenv (variables that jobs report). The files
// are trace (what jobs print), artifacts (what they upload), gitrepo (what is served of a repository) and githttp (how).
//
// What a GitLab has and this one has not: looking into reports other than dotenv (they are kept as they are), resource
// groups in configurations, downstream pipelines, merge requests, rate limits, the Job Router.
package coordinator
