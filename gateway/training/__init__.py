"""From served rows and training data to what training and serving share: profiles and data sets."""
