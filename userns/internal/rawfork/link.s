// This file is empty: its presence lets fork.go declare functions without bodies.
