package ciconfig

// Options is the context of a pipeline: what its rules see and how it reaches the repository. The zero value is a
// pipeline without any variable in a repository without other files.
//
// A variable's value is the one of the last list that has its key, and in a list of the last entry:
//
//	Predefined < top-level `variables` < `workflow:rules:variables` < job `variables` and matrix < `rules:variables` < Project < Pipeline
//
// That is GitLab's order (doc/ci/variables, "CI/CD variable precedence"). Compile evaluates rules, tags, includes and
// workflow:name with it. [Job.Variables] holds the YAML ones alone: whoever runs the job puts Predefined before and
// Project and Pipeline after them.
type Options struct {
	// Predefined are GitLab's own (CI_COMMIT_BRANCH, CI_PIPELINE_SOURCE, CI_DEFAULT_BRANCH, ...). A variable that must
	// be null in an expression, as CI_COMMIT_TAG is in a branch pipeline, is left out. Compile adds those that depend
	// on the job: CI_JOB_NAME, CI_JOB_NAME_SLUG, CI_JOB_GROUP_NAME, CI_JOB_STAGE, CI_JOB_MANUAL, CI_NODE_INDEX and
	// CI_NODE_TOTAL.
	Predefined []Variable
	// Project are those of the user, the instance, the groups and the project, in this order.
	Project []Variable
	// Pipeline are those that were given to this pipeline: by hand, by a trigger, by a schedule.
	Pipeline []Variable

	// Include returns the text of a file of the repository, for `include:local`. The path is relative to the
	// repository's root, with slashes, clean and without a leading one. Nil refuses every include.
	Include func(path string) ([]byte, error)
	// Glob returns the paths of the repository that match a pattern with `*` and `**`, for `include:local` with
	// wildcards; Compile sorts them. Nil refuses wildcards.
	Glob func(pattern string) ([]string, error)
	// Exists tells whether a path of the repository matches a pattern, for `rules:exists`. Nil refuses the keyword.
	Exists func(glob string) (bool, error)
	// Changes tells whether the pipeline's commits change a path that matches a pattern, for `rules:changes`. Nil
	// refuses the keyword.
	Changes func(glob string) (bool, error)
	// CacheDigest is the part of a cache's key that depends on files, for `cache:key:files` (their contents) and, with
	// commits, `cache:key:files_commits` (the last commits that changed them); paths may have `*` and `**`. Empty if none of
	// the files exists. Compile asks once for equal lists. Nil refuses the keywords.
	CacheDigest func(files []string, commits bool) (string, error)
}
