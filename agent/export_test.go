package agent

// SetRoom replaces the look at the disk. It is for before Run.
func (a *Agent) SetRoom(room func() error) { a.room = room }
