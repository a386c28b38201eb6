//go:build !unix

package proxy

// maxFiles is how many files this process may open, 0 if that is unknown.
func maxFiles() int { return 0 }
