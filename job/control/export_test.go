//go:build unix

package control

import "time"

// SetPatience replaces how long a question waits while nobody follows, and in all. It is for before the first question.
func (s *Server) SetPatience(lonely, unanswered time.Duration) {
	s.questions.lonely, s.questions.unanswered = lonely, unanswered
}
