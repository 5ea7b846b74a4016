package apisock

// LongestAnswer is the time after which the server gives up on a client that does
// not take its answer, changes apart.
const LongestAnswer = max(headerTimeout, answerTimeout)
