package sqlite

// Commits is how many transactions of writes have been committed since the opening.
func (s *Store) Commits() int64 { return s.writer.commits.Load() }
