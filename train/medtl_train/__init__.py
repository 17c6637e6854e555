"""Fine-tunes pretrained CNNs on medical images, and says honestly how good they are."""
