"""What a network takes from an image, on the device: saliency, places, prototypes, intensity, contributions."""
