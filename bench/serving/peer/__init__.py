"""The same models served without recengine: the peer of the serving bench."""
