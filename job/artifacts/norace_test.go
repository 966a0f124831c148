//go:build unix && !race

package artifacts

const raceDetector = false
