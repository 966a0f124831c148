package runnerapi

import "time"

// RegisterRequest is the body of POST /runners, the old way to make a runner: with a registration token instead of one
// that was made in GitLab's pages. The fields without omitempty are always sent, as gitlab-runner does.
type RegisterRequest struct {
	Info            Info   `json:"info"`
	Token           string `json:"token"` // the registration token
	Description     string `json:"description,omitempty"`
	MaintenanceNote string `json:"maintenance_note,omitempty"`
	TagList         string `json:"tag_list,omitempty"` // tags with commas between them
	RunUntagged     bool   `json:"run_untagged"`
	Locked          bool   `json:"locked"`
	AccessLevel     string `json:"access_level,omitempty"`    // not_protected (also if empty) or ref_protected
	MaximumTimeout  int    `json:"maximum_timeout,omitempty"` // seconds; at least 600, or 0 for no limit of its own
	Paused          bool   `json:"paused"`
}

// RegisterResponse answers it.
type RegisterResponse struct {
	ID             int64      `json:"id"`
	Token          string     `json:"token"` // the runner's own from now on
	TokenExpiresAt *time.Time `json:"token_expires_at"`
}

// UnregisterRequest is the body of DELETE /runners, which removes a runner from GitLab, and of DELETE /runners/managers,
// which removes one of its machines and needs a SystemID.
type UnregisterRequest struct {
	Token    string `json:"token"`
	SystemID string `json:"system_id,omitempty"`
}

// ResetTokenRequest is the body of POST /runners/reset_authentication_token.
type ResetTokenRequest struct {
	Token string `json:"token"`
}

// ResetTokenResponse answers it: from now on GitLab knows the new token only.
type ResetTokenResponse struct {
	Token          string     `json:"token"`
	TokenExpiresAt *time.Time `json:"token_expires_at"` // nil: it does not expire
}
